"""PackedWeight: a weight of bitsandbytes' modules that a merge changes: dequantised by rows, and quantised anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.adapters.merging.change import row_blocks
from shardload.adapters.merging.merged_weight import MergedWeight, Way
from shardload.adapters.merging.survival import Survival
from shardload.dequantise.bitsandbytes import VALUES, FourBit
from shardload.placement.quantisation import Quantisation
from shardload.placement.quantised import Quantised
from shardload.placement.quantisers import bitsandbytes

if TYPE_CHECKING:
    from shardload._system.file_mapping import PrivateMappings

_GROUP = 64  # numbers of four bits with one scale, where they are quantised here


def is_packed(weight: object) -> bool:
    """Whether a weight is one that bitsandbytes packed: its classes are known by name, so that nothing is imported."""
    return type(weight).__name__ in ("Int8Params", "Params4bit")


def unpackable(module: nn.Module) -> str | None:
    """Return why a packed weight of a module can't be quantised anew as it is ("has …"), or None."""
    weight: Any = module._parameters["weight"]
    if type(weight).__name__ == "Int8Params":
        return None if weight.dtype == torch.int8 else f"has weights of {weight.dtype} in a module of int8"
    state = weight.quant_state
    if state is None:
        return "has not been quantised yet"
    if getattr(state, "packing_format_for_cpu", False):
        return "has weights that bitsandbytes packed anew for this processor at their first run"
    return None if state.blocksize == _GROUP else f"has blocks of {state.blocksize} numbers, not of {_GROUP}"


class PackedRows:
    """A packed weight as a merge sees its base: `rows[2:4]` is a tensor of two rows in float32."""

    dtype = torch.float32

    def __init__(self, module: nn.Module) -> None:
        weight: Any = module._parameters["weight"]
        own: Any = module
        self.device: torch.device = weight.device
        self._numbers = weight.data
        self._state = state = getattr(weight, "quant_state", None)
        self.shape: tuple[int, ...] = tuple(weight.shape if state is None else state.shape)
        if state is None:
            self._scales = weight.SCB if weight.SCB is not None else own.state.SCB
            return
        self._parts = {"numbers": weight.data.reshape(-1).view(torch.uint8), "absmax": state.absmax}
        self._parts["quant_map"] = state.code
        more = {}
        if state.nested:
            outer = {"nested_absmax": state.state2.absmax, "nested_quant_map": state.state2.code}
            self._parts |= outer
            more = {"nested": state.state2.blocksize, "offset": float(state.offset)}
        code = str(state.dtype).removeprefix("torch.")
        sizes = self.shape[1], self.numel(), state.blocksize
        self._scheme = FourBit("", VALUES[state.quant_type], *sizes, code, **more)

    def numel(self) -> int:
        """Return the number of elements."""
        return self.shape[0] * self.shape[1]

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Return some rows."""
        start, stop, _ = rows.indices(self.shape[0])
        if self._state is None:
            dequantise = bitsandbytes().functional.int8_vectorwise_dequant
            return dequantise(self._numbers[start:stop], self._scales[start:stop])  # type: ignore[no-any-return]
        every = range(self.shape[1])
        wide, _ = self._scheme.window(range(start, stop), every)
        parts = dict(self._parts)
        for role, cuts in self._scheme.cuts(wide, every).items():
            for dim, first, length in cuts:
                parts[role] = parts[role].narrow(dim, first, length)
        made = self._scheme.decode({role: part.cpu() for role, part in parts.items()}, wide, every)
        return made[start - wide.start : stop - wide.start].to(self.device, torch.float32)


@dataclass
class PackedWeight(MergedWeight):
    """A packed weight, before, during and after a merge: the base's parameter stays, and takes its place again."""

    base: PackedRows | None = None
    _aside: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, module: nn.Module, mappings: PrivateMappings) -> PackedWeight:
        """Return a weight that is about to be merged into."""
        weight: Any = module._parameters["weight"]
        mapped = weight.is_cpu and mappings.place_of(weight.data_ptr()) is not None
        made = cls(name, module, "weight", Way.MAPPED if mapped else Way.COPY, weight, dtype=weight.dtype)
        made.nbytes = weight.nbytes
        return made

    @property
    def kind(self) -> str:
        """What bitsandbytes calls the packing."""
        weight: Any = self.original
        return "int8" if weight.dtype == torch.int8 else str(weight.quant_state.quant_type)

    def begin(self) -> tuple[Any, torch.Tensor]:
        """Return the base's values, by rows, and memory for the merged ones, in float32."""
        self.base = PackedRows(self.module)
        return self.base, torch.empty(self.base.shape, dtype=torch.float32, device=self.base.device)

    def put(self, merged: torch.Tensor) -> None:
        """Quantise the merged values as the base is quantised, and let the module run with them."""
        weight: Any = self.original
        state: Any = getattr(weight, "quant_state", None)
        own, eight = self.module.__dict__, state is None
        settings: Any = {} if eight else {"nested": bool(state.nested), "storage": weight.dtype}
        target = Quantised(Quantisation(self.kind, (), **settings), merged.device, torch.float32)
        try:
            out, into = merged.shape
            target.prepare(nn.Sequential(nn.Linear(into, out, device="meta")))
            made: Any = target.place("0.weight", merged)
        finally:
            target.close()
        if eight:
            running = own["state"]
            self._aside = {"CB": running.CB, "SCB": running.SCB}
            running.CB = running.SCB = None  # its next run takes them from the parameter
        else:
            made.quant_state.dtype = state.dtype
            made.module, own["quant_state"] = self.module, made.quant_state
        self.module._parameters["weight"] = made

    def survived(self, merged: torch.Tensor) -> Survival:
        """Return how much of the change is left in the packed weight."""
        survival, base, now = Survival(), self.base, PackedRows(self.module)
        if base is None:
            raise AssertionError(self.name)
        for rows in row_blocks(base.shape):
            before = base[rows]
            survival.count(Survival.sums_of(before, merged[rows] - before, now[rows]))
        self.base = None
        return survival

    def can_be_undone(self) -> bool:
        """Return whether `undo` can still restore the values: the base's parameter is kept."""
        return True

    def undo(self) -> None:
        """Put the base's parameter back; a model that was moved meanwhile keeps its device."""
        weight: Any = self.original
        now = self.module._parameters["weight"]
        if now is None or now is weight:
            return
        weight = weight if weight.device == now.device else weight.to(now.device)
        own = self.module.__dict__
        if self._aside:
            for name, tensor in self._aside.items():
                setattr(own["state"], name, None if tensor is None else tensor.to(now.device))
        else:
            own["quant_state"] = weight.quant_state
        self.module._parameters["weight"] = weight
