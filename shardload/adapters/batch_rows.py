"""BatchRows: an adapter for each row of the batch. The rows of one adapter run together, then return in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from shardload.errors import UsageError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.adapters.layers.term import AdaptedLayer


@dataclass(frozen=True, eq=False)
class BatchRows:
    """The adapter's name, or None for the plain base, of every row of the batch.

    `dim` is the dimension of a layer's input that counts the rows; with None it is the one of that size.
    """

    names: tuple[str | None, ...]
    dim: int | None = None
    doubtful: bool = False
    groups: tuple[tuple[str | None, tuple[int, ...]], ...] = ()
    back: tuple[int, ...] = ()
    _indices: dict[tuple[torch.device, tuple[int, ...]], torch.Tensor] = field(
        default_factory=dict, repr=False
    )

    @classmethod
    def of(cls, names: Sequence[str | None], dim: int | None = None, *, doubtful: bool = False) -> BatchRows:
        """Sort the rows by adapter. `doubtful`: the batch may not be the model's first dimension."""
        by_name: dict[str | None, list[int]] = {}
        for row, name in enumerate(names):
            by_name.setdefault(name, []).append(row)
        order = [row for group in by_name.values() for row in group]
        back = sorted(range(len(order)), key=order.__getitem__)
        groups = tuple((name, tuple(group)) for name, group in by_name.items())
        return cls(tuple(names), dim, doubtful, groups, tuple(back))

    @property
    def alike(self) -> bool:
        """Whether all rows have the same adapter."""
        return len(self.groups) == 1

    def add(self, layer: AdaptedLayer, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Return a layer's output `out` for the input `x` with every row's adapter added.

        Raises UsageError when `x` has another number of rows than there are names.
        """
        terms = layer.lora_terms
        if not any(name in terms for name, _ in self.groups):
            return out
        dim = self._dimension(x, out)
        pieces = []
        for name, rows in self.groups:
            piece = self._take(out, dim, rows)
            if name is not None and name in terms:
                piece = terms[name].add(layer, name, 1.0, self._take(x, dim, rows), piece)
            pieces.append(piece)
        together = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
        return together if _is_run(self.back) else self._take(together, dim, self.back)

    def _take(self, tensor: torch.Tensor, dim: int, rows: tuple[int, ...]) -> torch.Tensor:
        if _is_run(rows):
            return tensor.narrow(dim, rows[0], len(rows))
        key = (tensor.device, rows)
        index = self._indices.get(key)
        if index is None:
            index = self._indices[key] = torch.tensor(rows, device=tensor.device)
        return tensor.index_select(dim, index)

    def _dimension(self, x: torch.Tensor, out: torch.Tensor) -> int:
        """Return the dimension of a layer's input and output that counts the rows of the batch."""
        count = len(self.names)
        # Tokens are [batch, sequence]. Everything else has features last, or channels after the batch.
        leading = x.dim() if not x.is_floating_point() else x.dim() - 1
        fits = [dim for dim in range(min(2, leading)) if x.shape[dim] == count == out.shape[dim]]
        if self.dim is not None and (self.dim in fits or not fits):
            fits = [dim for dim in fits if dim == self.dim]
        if not fits:
            raise UsageError(
                f"adapter_batch has {count} rows, and a layer's input has the shape {tuple(x.shape)}",
                where="adapter_batch",
                cure="name one adapter (or None) for every row that the model is called with; beams and returned "
                "sequences are rows too",
            )
        if len(fits) > 1 and self.dim is None and self.doubtful and x.is_floating_point():
            raise UsageError(
                f"the input of a layer, {tuple(x.shape)}, has {count} rows either way",
                where="adapter_batch",
                cure=Wording(
                    "say which dimension counts the rows inside this model: {0} where the sequence comes first "
                    "(ChatGLM, ChatGLM2), else {1}",
                    keyword("batch_dim", 1),
                    keyword("batch_dim", 0),
                ),
            )
        return fits[0]


def _is_run(rows: tuple[int, ...]) -> bool:
    return rows == tuple(range(rows[0], rows[0] + len(rows)))
