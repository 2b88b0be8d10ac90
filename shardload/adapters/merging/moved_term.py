"""MovedTerm: the change of a stored tensor whose elements are parts of a parameter that an adapter changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from shardload.adapters.layers.term import LoraTerm
from shardload.keymap.derived import Derived, Filled, Joined, narrowed
from shardload.keymap.views import strides_of
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    import torch

    from shardload.adapters.layers.term import Factors, Shape

_BYTES = 4  # of an element in the headers that say where a part lies


@dataclass(frozen=True)
class MovedTerm(LoraTerm):
    """The change that `inner` makes of a parameter of the shape `whole`, cut and joined as `place` says.

    `place` is the stored tensor, made of views of the parameter; what it has from elsewhere is filled with zeros.
    """

    inner: LoraTerm = field(default_factory=lambda: LoraTerm(1, 1.0))
    place: Derived | Filled = field(default_factory=lambda: Filled("F32", ()))
    whole: tuple[int, ...] = ()
    _kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, inner: LoraTerm, place: Derived | Filled, whole: tuple[int, ...]) -> MovedTerm:
        """Return the term of the stored tensor `place`."""
        return cls(inner.rank, inner.scale, inner.dropout, inner.attribute, inner, place, whole)

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return the change of the stored tensor, or some rows of it."""
        start, stop, _ = (rows or slice(None)).indices(shape[0])
        part = narrowed(self.place, 0, start, stop - start)
        result = factors.a.new_zeros(part.shape)
        self._fill(result, part, factors)
        return result

    def _fill(self, result: torch.Tensor, part: Derived | Filled, factors: Factors) -> None:
        if isinstance(part, TensorRef):
            result.copy_(self._view(part, factors))
        elif isinstance(part, Joined):
            at = 0
            for piece in part.parts:
                size = piece.shape[part.dim]
                self._fill(result.narrow(part.dim, at, size), piece, factors)
                at += size

    def _view(self, ref: TensorRef, factors: Factors) -> torch.Tensor:
        """Return the values of one view of the parameter's change; no more of its rows are computed than it spans."""
        row = prod(self.whole[1:]) * _BYTES
        first, last = ref.span.start // row, -(-ref.span.stop // row)
        block = self._rows(first, last, factors).view(-1)
        offset = (ref.span.start - first * row) // _BYTES
        return block.as_strided(ref.shape, strides_of(ref), block.storage_offset() + offset)

    def _rows(self, first: int, last: int, factors: Factors) -> torch.Tensor:
        """Return some rows of the change, contiguous. All of them are kept: blocks of a transposed one ask again."""
        whole = (first, last) == (0, self.whole[0])
        kept = self._kept.get("rows")
        if whole and kept is not None and kept[0] is factors:
            return kept[1]  # type: ignore[no-any-return]
        made = self.inner.delta(factors, self.whole, None if whole else slice(first, last)).contiguous()
        if whole:
            self._kept["rows"] = (factors, made)
        return made
