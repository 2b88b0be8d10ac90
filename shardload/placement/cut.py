"""Cut: the part of a tensor that one rank of a mesh holds. Does not import torch.

A part of a stored tensor is a smaller header, so a rank plans, states and reads its part as if it were stored alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from shardload.keymap import leaves
from shardload.keymap.derived import Filled, Joined, join, narrowed
from shardload.tensor_ref import Span, TensorRef

if TYPE_CHECKING:
    import torch

    from shardload.keymap import Derived

Ranges = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True, slots=True)
class Split:
    """One dimension of a mesh that splits dimension `dim` of a tensor into `count` chunks, of which this is `index`.

    A split that is `outer` divides what the splits after it left, as FSDP does on top of tensor parallelism, though its
    dimension of the mesh comes first. One of several `pieces` splits each of these equal pieces: of gate and up, packed
    in one weight, every rank holds some of both.
    """

    dim: int
    count: int
    index: int
    outer: bool = False
    pieces: int = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a tensor of shape `whole`: of each dimension the entries of some ranges, from starts to stops."""

    whole: tuple[int, ...]
    ranges: Ranges

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        return tuple(sum(stop - start for start, stop in each) for each in self.ranges)

    @property
    def is_whole(self) -> bool:
        """Whether the part is the tensor."""
        return self.shape == self.whole

    def of(self, tensor: Derived) -> Derived:
        """Return the part of a stored tensor as a header of its own; an empty part has no bytes."""
        if not all(self.shape):
            first = next(leaves(tensor), None)
            at, shard = (first.span.start, first.shard) if first else (0, tensor.shard)
            return TensorRef(tensor.name, tensor.dtype, self.shape, shard, Span(at, at))
        part: Derived | Filled = tensor
        for dim, ranges in enumerate(self.ranges):
            pieces = [narrowed(part, dim, start, stop - start) for start, stop in ranges]
            part = pieces[0] if len(pieces) == 1 else join(pieces, dim)
        # Rows that a key map adds are in no file: a part of them alone is joined of nothing else.
        return Joined(part.dtype, part.shape, 0, (part,)) if isinstance(part, Filled) else part

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of a tensor in memory, as a view where it is in one piece."""
        for dim, ranges in enumerate(self.ranges):
            pieces = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
            tensor = pieces[0] if len(pieces) == 1 else _together(pieces, dim)
        return tensor


@lru_cache(maxsize=4096)
def cut_by(shape: tuple[int, ...], splits: tuple[Split, ...]) -> Cut:
    """Return the part that splits leave of a tensor of a shape; each splits what the ones before it left.

    Chunks are those of `torch.chunk`: as long as the first one, the last ones shorter or empty. A dimension that is
    split in pieces has to be a multiple of their number, and is split once.
    """
    ranges = [[(0, size)] for size in shape]
    inner = [split for split in splits if not split.outer]
    outer = [split for split in splits if split.outer]
    for split in (*inner, *reversed(outer)):
        (start, stop), *_ = ranges[split.dim]
        length = (stop - start) // split.pieces
        starts = range(start, stop, length) if split.pieces > 1 else [start]
        ranges[split.dim] = [_chunk(at, at + length, split) for at in starts]
    return Cut(shape, tuple(map(tuple, ranges)))


def _chunk(start: int, stop: int, split: Split) -> tuple[int, int]:
    step = -(-(stop - start) // split.count)
    first = min(start + split.index * step, stop)
    return first, min(first + step, stop)


def _together(pieces: list[torch.Tensor], dim: int) -> torch.Tensor:
    import torch

    return torch.cat(pieces, dim)
