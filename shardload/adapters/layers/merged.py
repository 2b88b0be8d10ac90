"""MergedLinear of loralib and PEFT 0.2: a linear layer of fused projections, of which some are adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional

from shardload.adapters.layers.layer import LayerKind, LoraLayer, Reading
from shardload.adapters.layers.linear import Linear
from shardload.adapters.layers.term import LoraTerm
from shardload.adapters.layers.transposed import Transposed

if TYPE_CHECKING:
    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import AdaptedLayer, Factors, Shape

_LINEARS: tuple[Linear, ...] = (Transposed(), Linear())


@dataclass(frozen=True)
class MergedTerm(LoraTerm):
    """A is (rows of A, in), B is (rows that are on, rank of a group).

    There are `groups` = rows of A / columns of B groups; group g gives B_g @ A_g, and all groups together give the rows
    of the base weight whose part is on in `enable`, from the first to the last. Parts are equal runs of rows, also on
    ChatGLM-6B's interleaved query_key_value: training used thirds of the whole there too. `columns`: the base weight
    is (in, out).
    """

    dora_axis: ClassVar[int | None] = None

    enable: tuple[bool, ...] = (True,)
    groups: int = 1
    columns: bool = False

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * (B @ A), group by group, in the rows that are on; zeros elsewhere."""
        a = factors.a
        if self.columns:
            if rows is not None:
                a = a[:, rows]
            return self._scattered(a, factors.b, shape[1]).T
        whole = self._scattered(a, factors.b, shape[0]) if rows is None else None
        if whole is not None:
            return whole
        # Only the wanted rows are computed: each comes from one row of B and the rows of A of its group.
        first, last, step = (rows or slice(None)).indices(shape[0])
        on = self._rows_on(shape[0], factors.b.device)[first:last:step]
        block = a.new_zeros(len(on), a.shape[1])
        size, rank = factors.b.shape[0] // self.groups, factors.b.shape[1]
        for group in range(self.groups):
            mine = (on >= group * size) & (on < (group + 1) * size)
            block[mine] = torch.mm(factors.b[on[mine]], a[group * rank : (group + 1) * rank]) * self.scale
        return block

    def _scattered(self, a: torch.Tensor, b: torch.Tensor, out: int) -> torch.Tensor:
        size, rank = b.shape[0] // self.groups, b.shape[1]
        blocks = [
            torch.mm(b[group * size : (group + 1) * size], a[group * rank : (group + 1) * rank])
            for group in range(self.groups)
        ]
        delta = torch.cat(blocks) * self.scale
        if all(self.enable):
            return delta
        return delta.new_zeros(out, delta.shape[1]).index_copy(0, self._places(out, b.device), delta)

    def stored(self, factors: Factors) -> tuple[int, dict[str, torch.Tensor]]:
        """Return the same delta as one plain pair of rank (rows of A): B is block-diagonal."""
        a, b = factors.a, factors.b
        rows = b.shape[0] // sum(self.enable) * len(self.enable)
        size, rank = b.shape[0] // self.groups, b.shape[1]
        parts = (b[g * size : (g + 1) * size] for g in range(self.groups))
        blocks = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
        whole = b.new_zeros(rows, self.groups * rank).index_copy(0, self._places(rows, b.device), blocks)
        return a.shape[0], {"lora_A.weight": a, "lora_B.weight": whole}

    def _places(self, out: int, device: torch.device) -> torch.Tensor:
        """Return the rows of the base weight that are on, (rows of B,)."""
        return (
            torch.tensor(self.enable, device=device)
            .repeat_interleave(out // len(self.enable))
            .nonzero()[:, 0]
        )

    def _rows_on(self, out: int, device: torch.device) -> torch.Tensor:
        """Return the row of B for each row of the base weight, -1 where it is off, (out,)."""
        places = self._places(out, device)
        rows = torch.full((out,), -1, dtype=torch.long, device=device)
        rows[places] = torch.arange(len(places), device=device)
        return rows

    def add(
        self, layer: AdaptedLayer, name: str, weight: float, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Return out with weight * scale * B_g(A_g(dropout(x))) added to the parts that are on."""
        factors = layer.lora_factors(name)
        x = x if x.dtype == factors.a.dtype else x.to(factors.a.dtype)
        if self.dropout and layer.training:
            x = functional.dropout(x, self.dropout)
        inner = torch.split(functional.linear(x, factors.a), factors.b.shape[1], dim=-1)
        size = factors.b.shape[0] // self.groups
        deltas = [
            functional.linear(part, factors.b[g * size : (g + 1) * size]) for g, part in enumerate(inner)
        ]
        delta = torch.cat(deltas, dim=-1) * (self.scale * weight)
        if all(self.enable):
            return out + delta
        parts = list(torch.split(out, out.shape[-1] // len(self.enable), dim=-1))
        width = parts[0].shape[-1]
        on = [place for place, is_on in enumerate(self.enable) if is_on]
        for number, place in enumerate(on):
            parts[place] = parts[place] + delta[..., number * width : (number + 1) * width]
        return torch.cat(parts, dim=-1)


class Merged(LayerKind):
    """A Linear, or a transposed one, with the stored factors of a MergedLinear."""

    name = "MergedLinear"

    def fits(self, module: nn.Module, entry: LoraEntry | None = None) -> bool:
        """Return whether the entry is a MergedLinear's and the module a linear layer."""
        return entry is not None and entry.is_merged() and any(kind.fits(module) for kind in _LINEARS)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse parts that are unknown, or that do not fit the shapes."""
        if entry.magnitude is not None or entry.bias is not None:
            return "is adapted as a MergedLinear, for which DoRA and lora_bias are not defined"
        out, _ = self._plain(module).features(module)
        enable = self._enable(module, entry)
        if enable is None:
            return (
                f"is adapted in some of its {out} rows only, as a MergedLinear, and the file does not say which: pass "
                "enable_lora=, for example [True, False, True] for q and v of a fused q, k, v"
            )
        if not any(enable) or out % len(enable):
            return f"has {out} rows, which enable_lora = {list(enable)} can't divide"
        return None

    def read(self, module: nn.Module, entry: LoraEntry) -> Reading:
        """Read A (rank * parts on, in), B (rows on, rank of a group), or (…, 1) as PEFT 0.2 stores it."""
        plain = self._plain(module)
        out, into = plain.features(module)
        enable = self._enable(module, entry) or (True,)
        columns = max(entry.b.shape[1], 1) if len(entry.b.shape) > 1 else 1
        a_rows = entry.a.shape[0] if entry.a.shape else 1
        groups = max(a_rows // columns, 1)
        rank = max(a_rows // sum(enable), 1)
        rows = out // len(enable) * sum(enable)
        term = MergedTerm(
            rank=rank,
            scale=entry.scaling.of(rank),
            dropout=entry.dropout,
            enable=enable,
            groups=groups,
            columns=isinstance(plain, Transposed),
        )
        form = (rows, a_rows // groups)
        stored = (*form, 1) if len(entry.b.shape) == 3 else form
        note = f"MergedLinear, {sum(enable)} of {len(enable)} parts"
        return Reading(term, {"a": (rank * sum(enable), into), "b": stored}, {"b": form}, note=note)

    def host_of(self, module: nn.Module) -> type[LoraLayer]:
        """Return the host of the plain linear layer that the module is."""
        return self._plain(module).host

    def _plain(self, module: nn.Module) -> Linear:
        return next(kind for kind in _LINEARS if kind.fits(module))

    def _enable(self, module: nn.Module, entry: LoraEntry) -> tuple[bool, ...] | None:
        """Return the parts that are on: as given, or all where B has a row for every row of the base; else None."""
        if entry.enable is not None:
            return entry.enable
        if (
            entry.b.shape
            and entry.b.shape[0] == self._plain(module).features(module)[0]
            and len(entry.b.shape) > 1
            and entry.a.shape
        ):
            groups = max(entry.a.shape[0] // max(entry.b.shape[1], 1), 1)
            return (True,) * groups
        return None
