"""AdapterValues: an adapter's tensors, read for the layers that they were matched with, every value checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.adapters.adapter_report import AdapterFault, AdapterRow
from shardload.adapters.judgement import refuse
from shardload.adapters.layers import Factors
from shardload.adapters.module_index import tensor_of
from shardload.adapters.residual import relative_to_base
from shardload.dtypes import parse_dtype
from shardload.errors import UsageError
from shardload.keymap.assembly import assemble
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from shardload.adapters.adapter import AdapterFile
    from shardload.adapters.adapter_match import AdapterMatch, LayerMatch, ReplacedMatch
    from shardload.adapters.adapter_report import AdapterReport
    from shardload.adapters.layers import LoraTerm
    from shardload.adapters.replication import Replication
    from shardload.checkpoint.shard import AnyShard
    from shardload.keymap import Derived


@dataclass(frozen=True)
class LayerValues:
    """The tensors of one adapted layer, on its device and in the dtype in which they compute."""

    match: LayerMatch
    factors: Factors


@dataclass
class AdapterValues:
    """All tensors of an adapter, a row for each stored one, and the faults found in their values."""

    layers: list[LayerValues] = field(default_factory=list)
    replaced: list[tuple[ReplacedMatch, torch.Tensor]] = field(default_factory=list)
    replication: Replication | None = None
    rows: list[AdapterRow] = field(default_factory=list)
    faults: list[AdapterFault] = field(default_factory=list)


def read_values(
    file: AdapterFile,
    match: AdapterMatch,
    report: AdapterReport,
    *,
    dtype: str | torch.dtype = "file",
    as_stored: bool = False,
) -> AdapterValues:
    """Read every matched tensor once, and note each in the report: a view of the file where dtype and device fit.

    A and B take the dtype that `dtype` is; with "file" they keep the stored one unless the base layer's floating
    dtype is wider (so that no input is narrowed), with "trained" that or the wider float32, with "base" they take the
    base layer's. A tensor that replaces one
    of the base takes that one's. With `as_stored` nothing is cast: a merge casts one tensor at a time. Raises
    CorruptError for all tensors with NaN or Inf.
    """
    values = AdapterValues(replication=match.replication)
    # One mapping for all tensors; it lives as long as one of them does.
    with file.checkpoint._opened(file.weights) as shard:
        reader = _Reader(shard, values, "stored" if as_stored else dtype)
        for layer in match.layers:
            values.layers.append(_read_layer(reader, layer, report.name))
        for replaced in match.replaced:
            values.replaced.append((replaced, _read_replaced(reader, replaced)))
    if values.layers and not any(_changes(layer) for layer in values.layers):
        report.warnings += (
            "every B is zero: the adapter changes nothing (was it saved before the training?)",
        )
    report.rows, report.faults = tuple(values.rows), tuple(values.faults)
    if values.faults:
        refuse(report)
    return values


def checked_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """Return the `dtype` of a call, a floating one as torch's own. Raises UsageError for what is none."""
    if dtype in {"auto", "file", "base"}:
        return dtype
    try:
        named = parse_dtype(dtype)
    except UsageError as error:
        raise UsageError(
            error.what, cure='pass "auto", "file", "base" or a dtype such as "float32"'
        ) from None
    return named or "file"  # "stored"


def dtype_for_use(dtype: str | torch.dtype, *, trains: bool) -> str | torch.dtype:
    """Return what "auto" is: steps of half a dtype's precision are lost, so what trains is in float32 at least."""
    return ("trained" if trains else "file") if dtype == "auto" else dtype


def _changes(layer: LayerValues) -> bool:
    return not layer.match.reading.term.rank or bool(layer.factors.b.any())


def _read_layer(reader: _Reader, match: LayerMatch, name: str) -> LayerValues:
    term, reading = match.reading.term, match.reading
    base = match.layer._parameters.get(term.attribute)
    base = getattr(match.layer, term.attribute, None) if base is None else base
    # A shell has no real weights yet: the adapter stays on the CPU.
    device = base.device if isinstance(base, torch.Tensor) and base.device.type != "meta" else None
    own = base.dtype if isinstance(base, torch.Tensor) and base.dtype in _FLOATING else None
    read: dict[str, nn.Parameter] = {}
    for part, ref in match.entry.parts():
        stored = reader.read(ref, match.path)
        if reading.transposed and part in {"a", "b"}:
            stored = stored.T
        if part in reading.forms:
            stored = stored.reshape(reading.forms[part])
        wide = reader.dtype_for(stored.dtype, own)
        tensor = stored.to(device=device, dtype=wide).contiguous()
        notes = [f"computes in {str(wide).removeprefix('torch.')}"] if wide != stored.dtype else []
        notes += [reading.note] if reading.note and part == "a" else []
        scale = term.scale if term.rank else None
        reader.note(ref, _target(match.path, term, part, name), scale, ", ".join(notes))
        read[part] = as_parameter(tensor)
    factors = Factors(
        read["a"], read.get("b", read["a"].new_empty(0)), read.get("bias"), read.get("magnitude")
    )
    initial = match.entry.initial
    if initial is not None and all(bool(part.isfinite().all()) for part in (factors.a, factors.b)):
        term, factors = relative_to_base(initial, match.layer, term, factors)
        match = replace(match, reading=replace(reading, term=term))
    return LayerValues(match, factors)


_PLACES = {"a": "lora_A", "b": "lora_B", "bias": "lora_B", "magnitude": "lora_magnitude_vector"}


def _target(path: str, term: LoraTerm, part: str, name: str) -> str:
    """Return the name of a stored factor in the model."""
    leaf = "bias" if part == "bias" else "weight" if term.attribute in _OWN else term.attribute
    return f"{path}.{_PLACES[part]}.{name}.{leaf}" if path else f"{_PLACES[part]}.{name}.{leaf}"


_OWN = ("weight", "in_proj_weight")


_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _read_replaced(reader: _Reader, match: ReplacedMatch) -> torch.Tensor:
    entry = match.entry
    stored = reader.read(entry.ref, match.path)
    current = tensor_of(match.module, entry.attribute)
    for copy in entry.copies:
        if not torch.equal(reader.read(copy, match.path), stored):
            text = f"it differs from {entry.ref.name}, of which it should be a copy"
            reader.values.faults.append(AdapterFault("duplicate", copy.name, text, match.path))
        reader.note(copy, match.name, None, f"a copy of {entry.ref.name}, compared")
    for spare in entry.spares:
        reader.read(spare, match.path)
        reader.note(spare, match.name, None, "the base's own value, not used")
    if current is None or reader.dtype == "stored":
        tensor = stored
    elif current.device.type == "meta":
        tensor = stored.to(current.dtype)
    else:
        tensor = stored.to(device=current.device, dtype=current.dtype)
    note = "replaces the base's"
    if tensor.dtype != stored.dtype:
        note += f", cast to {str(tensor.dtype).removeprefix('torch.')}"
    reader.note(entry.ref, match.name, None, note)
    return tensor


class _Reader:
    """Reads stored tensors, and notes those with NaN or Inf."""

    def __init__(self, shard: AnyShard, values: AdapterValues, dtype: str | torch.dtype) -> None:
        self.shard = shard
        self.values = values
        self.dtype = dtype

    def dtype_for(self, stored: torch.dtype, base: torch.dtype | None) -> torch.dtype:
        """Return the dtype of factors; `base` is the base layer's dtype, None where that is not a floating one."""
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        if self.dtype == "stored":
            return stored
        base = base or stored
        if self.dtype == "base":
            return base
        wide = torch.promote_types(stored, base)
        return torch.promote_types(wide, torch.float32) if self.dtype == "trained" else wide

    def read(self, ref: Derived, path: str) -> torch.Tensor:
        tensor = self.shard.tensor(ref) if isinstance(ref, TensorRef) else assemble(ref, self.shard.tensor)
        if not _is_finite(tensor):
            text = "the tensor holds NaN or Inf"
            self.values.faults.append(AdapterFault("not finite", ref.name, text, path, ref.shape))
        return tensor

    def note(self, ref: Derived, target: str, scale: float | None, note: str) -> None:
        self.values.rows.append(AdapterRow(ref.name, target, ref.shape, ref.dtype, scale, note))


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite, by the extremes, so that no mask as large as the tensor is made."""
    if tensor.dtype not in _FLOATING or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(low.item()) and math.isfinite(high.item())


def as_parameter(tensor: torch.Tensor) -> nn.Parameter:
    """Return the tensor as a frozen parameter over the same memory."""
    return nn.Parameter(tensor, requires_grad=False)
