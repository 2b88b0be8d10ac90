"""Forecast: what a load would download, read, hold and peak at, from headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardload._system.gc_pause import gc_paused
from shardload._system.read_ahead import free_memory
from shardload.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shardload.dtypes import float_code
from shardload.errors import UsageError
from shardload.keymap import KeyMap, Residence, as_view, leaves, residence, second_views
from shardload.tensor_ref import DTYPE_BITS, TORCH_NAMES, TensorRef

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import torch

    from shardload.keymap import Derived, MappedHeaders, Names

SCHEMA = "shardload.plan/1"
WORK_SPACE = 64 << 20
"""Bytes that a load which casts or copies may hold besides its result; one that only maps stays below half of it."""


@dataclass(frozen=True)
class Amounts:
    """Bytes that weights take when all of them are loaded and have been used once.

    `anon` must be kept in memory, `file` are mapped pages that the system may drop and read again, `device` lie on
    another device.
    """

    anon: int = 0
    file: int = 0
    device: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(self.anon + other.anon, self.file + other.file, self.device + other.device)


@dataclass
class Forecast:
    """What a load would do. All sizes are bytes.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(1000, 1000), "tiny")
        >>> forecast = shardload.plan_load("tiny")
        >>> forecast.tensors, forecast.download, forecast.read, forecast.fits
        (2, 0, 4004000, True)

    `download` is what is not on this disk yet, `read` what the loaded tensors have in their files. `held` are the
    weights when they are loaded, `adapter` those of an adapter on top. `peak_anon` is an upper bound of the
    anonymous memory that the load adds, `work_space` what of it is no weight. `joins` are the tensors that a key map
    joins; `rules` says how many names each of its rules takes. What a class computes itself (buffers, tables)
    and what it ties is not known from headers.
    """

    where: str
    revision: str | None
    format: str
    dtype: str
    device: str
    tensors: int
    shards: int
    download: int
    read: int
    held: Amounts
    peak_anon: int
    work_space: int
    dtypes: dict[str, int]
    free: int
    adapter: Amounts | None = None
    joins: Residence = field(default_factory=Residence)
    rules: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    dropped: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the anonymous peak is less than what this process may still take; True where that is not known."""
        return self.free == 0 or self.peak_anon <= self.free

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON data, with the version of its schema.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(1000, 1000), "tiny")
        >>> shardload.plan_load("tiny").to_dict()["dtypes"]
        {'float32': 4004000}
        """
        plain = ("where", "revision", "format", "dtype", "device", "tensors", "shards", "download", "read")
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in plain},
            "held": vars(self.held),
            "adapter": vars(self.adapter) if self.adapter else None,
            "peak_anon": self.peak_anon,
            "work_space": self.work_space,
            "free": self.free,
            "fits": self.fits,
            "dtypes": self.dtypes,
            "joins": vars(self.joins),
            "rules": [{**rule, "takes": count} for rule, count in self.rules],
            "dropped": self.dropped,
            "notes": self.notes,
        }


@gc_paused()
def plan_load(
    where: str | os.PathLike[str] | Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    copy: bool = False,
    **options: Any,
) -> Forecast:
    """Return what `from_pretrained` with these keywords would download, read, hold and peak at.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(1000, 1000), "tiny")
        >>> shardload.plan_load("tiny").held.anon, shardload.plan_load("tiny", dtype="bfloat16").held.anon
        (0, 2002000)

    Nothing but headers is read; of a Hub repo no weight is downloaded. No model is built, so nothing is judged
    against one. Other keywords are those of `open_checkpoint`. Raises what that raises, and UsageError for a key map
    that does not fit.
    """
    checkpoint = where if isinstance(where, Checkpoint) else open_checkpoint(where, **options)
    code = float_code(dtype)
    rules = KeyMap.of(key_map)
    mapped = rules.map_headers(checkpoint.tensors)
    rules.require_fit(checkpoint.tensors, mapped)
    load = _Load(code, _device_type(device), copy)
    copies = second_views(rules.rules, mapped.tensors)
    tensors = {name: as_view(tensor) or tensor for name, tensor in mapped.tensors.items()}
    held = sum((load.amounts(tensor, copied=name in copies) for name, tensor in tensors.items()), Amounts())
    joins = residence(tensors, [shard.name for shard in checkpoint.shards])
    extra = _adapter_amounts(adapter, load, tensors, options) if adapter is not None else None
    works = code is not None or load.device != "cpu" or bool(joins.joined) or bool(copies) or copy
    work_space = WORK_SPACE if works else WORK_SPACE // 2
    return Forecast(
        where=checkpoint.label,
        revision=checkpoint.source.revision,
        format=checkpoint.format,
        dtype="auto" if code is None else TORCH_NAMES[code],
        device=str(device),
        tensors=len(tensors),
        shards=len({ref.shard for tensor in tensors.values() for ref in leaves(tensor)}),
        download=_download(checkpoint, tensors),
        read=sum(ref.nbytes for tensor in tensors.values() for ref in leaves(tensor)),
        held=held,
        peak_anon=held.anon + (extra.anon if extra else 0) + load.transient(tensors, joins) + work_space,
        work_space=work_space,
        dtypes=_dtypes(load, tensors),
        free=free_memory(),
        adapter=extra,
        joins=joins,
        rules=[(rule.to_dict(), count) for rule, count in zip(rules.rules, mapped.claimed, strict=True)],
        dropped=len(mapped.dropped),
        notes=[*checkpoint.warnings, *_notes(rules, mapped, checkpoint, copies)],
    )


class _Load:
    """What becomes of one tensor in a load: the same decisions as the stream's, from its header."""

    def __init__(self, code: str | None, device: str, copy: bool) -> None:
        self.code = code
        self.device = device
        self.copy = copy

    def out(self, tensor: Derived) -> str:
        """Return the dtype code that a tensor has when it is loaded."""
        return self.code if self.code is not None and tensor.is_floating else tensor.dtype

    def out_bytes(self, tensor: Derived) -> int:
        return (tensor.numel * DTYPE_BITS[self.out(tensor)] + 7) // 8

    def amounts(self, tensor: Derived, *, copied: bool = False) -> Amounts:
        nbytes = self.out_bytes(tensor)
        if self.device != "cpu":
            return Amounts(device=nbytes)
        if copied or self.copy or self.out(tensor) != tensor.dtype or not is_mapped(tensor):
            return Amounts(anon=nbytes)
        return Amounts(file=nbytes)

    def transient(self, tensors: Mapping[str, Derived], joins: Residence) -> int:
        """Return what is held besides the results at the worst moment, at most."""
        moved = [t for t in tensors.values() if self.device != "cpu" or self.out(t) != t.dtype]
        # A stored tensor that had to be read, or put together, is there until it is cast or sent.
        read = max((t.nbytes for t in moved if self.copy or not is_mapped(t)), default=0)
        begun = joins.peak if any(not isinstance(t, TensorRef) for t in moved) else 0
        return max(read, begun)


def is_mapped(tensor: Derived) -> bool:
    """Whether a stored tensor is a view of its mapped file: it is in one piece, and its elements are aligned."""
    return isinstance(tensor, TensorRef) and (
        not tensor.numel or tensor.span.start % max(DTYPE_BITS[tensor.dtype] // 8, 1) == 0
    )


def _device_type(device: str | torch.device) -> str:
    name = str(device)
    if name in {"auto", "meta"} or name.startswith("{"):
        raise UsageError(f"device={name!r} is no device to load on", cure='pass "cpu" or "cuda"')
    return name.partition(":")[0]


def _download(checkpoint: Checkpoint, tensors: Mapping[str, Derived]) -> int:
    wanted = {ref.shard for tensor in tensors.values() for ref in leaves(tensor)}
    return sum(
        shard.size
        for shard in checkpoint.shards
        if shard.name in wanted and checkpoint.source.open(shard.name).is_remote
    )


def _dtypes(load: _Load, tensors: Mapping[str, Derived]) -> dict[str, int]:
    nbytes: Counter[str] = Counter()
    for tensor in tensors.values():
        code = load.out(tensor)
        nbytes[TORCH_NAMES.get(code, code)] += load.out_bytes(tensor)
    return dict(nbytes.most_common())


def _notes(rules: KeyMap, mapped: MappedHeaders, checkpoint: Checkpoint, copies: set[str]) -> list[str]:
    notes = []
    for rule, count in zip(rules.rules, mapped.claimed, strict=True):
        if not count:
            notes.append(f"key map: this rule takes no tensor: {rule.to_dict()}")
    if copies:
        notes.append(f"key map: {len(copies)} second names are counted as copies, which they are unless tied")
    if "quantization_config" in (checkpoint.config or {}):
        notes.append("the config names a quantisation: its class may need modules for it")
    return notes


def _adapter_amounts(
    where: str | os.PathLike[str], load: _Load, base: Mapping[str, Derived], options: Mapping[str, Any]
) -> Amounts:
    """Return what an adapter's tensors take: they compute in the wider one of their own dtype and the base's."""
    from shardload.adapters.source import open_adapter

    hub = {name: options[name] for name in ("token", "cache_dir", "local_files_only") if name in options}
    codes = Counter(load.out(tensor) for tensor in base.values() if tensor.is_floating)
    common = codes.most_common(1)[0][0] if codes else None
    total = Amounts()
    for ref in open_adapter(where, **hub).checkpoint.tensors.values():
        wide = _wider(ref.dtype, common) if ref.is_floating and common else ref.dtype
        total += _Load(wide, load.device, copy=False).amounts(ref)
    return total


def _wider(one: str, other: str) -> str:
    if one == other:
        return one
    if {one, other} == {"F16", "BF16"}:
        return "F32"
    return max(one, other, key=lambda code: DTYPE_BITS[code])
