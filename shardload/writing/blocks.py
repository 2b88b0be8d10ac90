"""Blocks: tensors in pieces small enough to be computed in memory, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.keymap.derived import Joined, narrowed
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload.keymap import Derived

_BLOCK = 64 << 20  # bytes


def row_blocks(tensor: Derived) -> Iterator[Derived]:
    """Yield the headers of a tensor's rows, as many at a time as fill 64 MiB; a larger row alone."""
    if tensor.nbytes <= _BLOCK:
        yield tensor
        return
    rows = max(_BLOCK * tensor.shape[0] // tensor.nbytes, 1)
    for start in range(0, tensor.shape[0], rows):
        piece = narrowed(tensor, 0, start, min(rows, tensor.shape[0] - start))
        if isinstance(piece, (TensorRef, Joined)):
            yield piece
        else:
            yield Joined(piece.dtype, piece.shape, 0, (piece,))
