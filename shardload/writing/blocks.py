"""Blocks: the parts of a tensor that are computed in memory one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.keymap.derived import Filled, Joined, narrowed
from shardload.tensor_ref import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload.keymap import Derived

_BLOCK = 64 << 20  # bytes


def row_blocks(tensor: Derived) -> Iterator[Derived]:
    """Yield a tensor's header as headers of consecutive rows, at most 64 MiB each; a larger row stands alone."""
    if tensor.nbytes <= _BLOCK or DTYPE_BITS[tensor.dtype] % 8:  # bits can't be cut
        yield tensor
        return
    rows = max(_BLOCK * tensor.shape[0] // tensor.nbytes, 1)
    for start in range(0, tensor.shape[0], rows):
        piece = narrowed(tensor, 0, start, min(rows, tensor.shape[0] - start))
        yield Joined(piece.dtype, piece.shape, 0, (piece,)) if isinstance(piece, Filled) else piece
