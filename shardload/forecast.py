"""Forecast: what a load would download, read, hold and peak at, from headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shardload._system.read_ahead import free_memory
from shardload.checkpoint.checkpoint import Checkpoint
from shardload.checkpoint.opened import opened
from shardload.checkpoint.sources.runs import AHEAD
from shardload.dtypes import float_code, parse_dtype
from shardload.errors import UsageError, Wording
from shardload.keymap import KeyMap, Residence, as_view, leaves, residence, second_views
from shardload.keywords import entry_point, place_of
from shardload.loading.memory_plan import MemoryPlan, Statement
from shardload.loading.rank_amounts import RankAmounts, Ranks, idle, plan_of
from shardload.placement.any_quantisation import NOT_ASKED, quantisation_of, settled, target_for
from shardload.placement.taken import code_after_cast, taken_on_device
from shardload.tensor_ref import DTYPE_BITS, TORCH_NAMES

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import torch
    from torch import nn
    from typing_extensions import Unpack

    from shardload.checkpoint.sources.source import SourceFile
    from shardload.keymap import Derived, MappedHeaders, Names
    from shardload.keywords import WhereKeywords
    from shardload.model.shell import Shell
    from shardload.placement.any_quantisation import AnyQuantisation
    from shardload.placement.device_map import DeviceRow
    from shardload.placement.spread import Spread
    from shardload.where import Where, WhereLike

SCHEMA = "shardload.plan/1"


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
    weights when they are loaded, `adapter` those of an adapter on top. `memory` is the statement that the load itself
    will make (`report.stated`), `ranks` what each rank reads and holds where several load one model, `devices` what
    lies where for a device map. `joins` is what a key map joins; `rules` says how many names each of its rules takes.
    What a class computes itself (buffers, tables) is never counted, what it ties only where its shell is given.
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
    memory: MemoryPlan
    dtypes: dict[str, int]
    free: int
    adapter: Amounts | None = None
    joins: Residence = field(default_factory=Residence)
    rules: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    dropped: int = 0
    notes: list[str] = field(default_factory=list)
    ranks: list[RankAmounts] = field(default_factory=list)
    devices: list[DeviceRow] = field(default_factory=list)

    @property
    def peak_anon(self) -> int:
        """A bound of the anonymous memory that the load adds beside its shell: what `max_memory` has to allow."""
        return self.memory.peak

    @property
    def work_space(self) -> int:
        """Bytes of the peak that are not weights."""
        return self.memory.staging

    @property
    def fits(self) -> bool:
        """Whether the load fits into free memory, and each device of a map may hold its part."""
        return self.fits_in_memory and all(row.fits for row in self.devices)

    @property
    def fits_in_memory(self) -> bool:
        """Whether the anonymous peak, of each rank, fits into free memory; True where free memory is not known."""
        peak = max((rank.peak for rank in self.ranks), default=self.peak_anon)
        return self.free == 0 or peak <= self.free

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
            **({"ranks": [vars(rank) for rank in self.ranks]} if self.ranks else {}),
            **({"devices": [row.to_dict() for row in self.devices]} if self.devices else {}),
        }


@entry_point
def plan_load(
    where: WhereLike | Checkpoint,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    copy: bool = False,
    shell: Shell | nn.Module | None = None,
    fsdp: int = 1,
    tp: int = 1,
    tp_plan: Mapping[str, str] | None = None,
    quantization_config: Any = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    device_map: Any = None,
    max_memory: Mapping[Any, Any] | None = None,
    **keywords: Unpack[WhereKeywords],
) -> Forecast:
    """Return what `from_pretrained` with these keywords would download, read, hold and peak at.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(1000, 1000), "tiny")
        >>> shardload.plan_load("tiny").held.anon, shardload.plan_load("tiny", dtype="bfloat16").held.anon
        (0, 2002000)

    Nothing but headers is read; of a Hub repo no weight is downloaded. No model is built, so what a class alone knows
    is not counted: loaders of its modules that join tensors, its ties, weights that it keeps in float32, values that it
    makes for missing parameters. Pass its `shell` to count them too; what does not fit it is left out, not judged.
    With `fsdp` or `tp`, `ranks` of the result says what each rank of such a mesh reads, holds and peaks at: FSDP cuts
    the rows of all tensors, tensor parallelism what `tp_plan` names, by default the plan of the class of transformers.
    `load_in_8bit`, `load_in_4bit` and `quantization_config` are as for `from_pretrained`; which weights are Linears
    only a `shell` says. With `device_map`, `devices` of the result are what lies where; `max_memory` may name devices
    that this machine lacks, and casts on the disk are taken to lie in a spill's file. Other keywords are those of
    `open_checkpoint`. Raises what that raises, and UsageError for a
    key map that does not fit.
    """
    asked = quantization_config, load_in_8bit, load_in_4bit
    quantised = quantisation_of(*asked) if any(each not in NOT_ASKED for each in asked) else None
    if quantised and shell is None:
        raise UsageError(
            "which weights are quantised depends on the modules of the model, and there is none",
            cure=Wording("pass {shell}: the model of build_shell", shell=...),  # noqa: S604
        )
    (checkpoint,) = opened(keywords, where)
    place = place_of(checkpoint.label if isinstance(where, Checkpoint) else where, keywords)
    code = float_code(dtype)
    if code is not None and checkpoint.may_be_packed and shell is None:
        from shardload.checkpoint.plain_weights import dequantised

        checkpoint = dequantised(checkpoint, dtype)
    spread = (
        None if device_map is None and max_memory is None else _spread(device_map, max_memory, device, copy)
    )
    copy = copy or checkpoint.source.is_streamed
    ahead = AHEAD if checkpoint.source.is_streamed else 0
    rules = KeyMap.of(key_map)
    mapped = rules.map_headers(checkpoint.tensors)
    rules.require_fit(checkpoint.tensors, mapped)
    on = _device_type(device)
    copies = second_views(rules.rules, mapped.tensors)
    tensors = {name: as_view(tensor) or tensor for name, tensor in mapped.tensors.items()}
    shards = [shard.name for shard in checkpoint.shards]
    extra = None if adapter is None else _adapter_amounts(place.elsewhere(adapter), code, on, tensors)
    beside = extra.anon if extra else 0
    if shell is None:
        statement = Statement(shards, copy, kept=beside, ahead=ahead)
        if spread is not None:
            statement.add_all(tensors, spread.by_name(tensors, code, reads_files=copy), copies)
        else:
            statement.add_all(tensors, lambda _name, tensor: taken_on_device(tensor, code, device=on), copies)
        memory = statement.plan()
    else:
        from shardload.loading.fill import stated_for

        loaded_in = parse_dtype(dtype)
        if code is None:
            shell, loaded_in, quantised = _settled(shell, checkpoint, quantised, auto=str(dtype) == "auto")
        make = target_for if spread is None else spread.target
        target = make(quantised, device, loaded_in)
        target.beside = beside
        memory = stated_for(shell, checkpoint, rules, target, copy=copy)
    held = Amounts(memory.anonymous - beside, memory.mapped, memory.device)
    notes = [*_notes(rules, mapped, checkpoint, copies), *(spread.notes if spread else ())]
    ranks = []
    if fsdp != 1 or tp != 1 or tp_plan is not None:
        over = Ranks(fsdp, tp, plan_of(checkpoint.config, tp_plan, tp, tensors), on, code, copy)
        ranks = over.amounts(tensors, shards)
        if tp > 1:
            notes.append(
                f"the plan cuts {len(over.cut_names(tensors)):,} of {len(tensors):,} tensors {tp} ways"
            )
            notes += [f"the plan names {name!r}, which no tensor is" for name in idle(tp_plan or {}, tensors)]
    return Forecast(
        where=checkpoint.label,
        revision=checkpoint.source.revision,
        format=checkpoint.format,
        dtype="auto" if code is None else TORCH_NAMES[code],
        device=str(device) if spread is None else spread.said,
        tensors=len(tensors),
        shards=len({ref.shard for tensor in tensors.values() for ref in leaves(tensor)}),
        download=_download(checkpoint, tensors),
        read=sum(ref.nbytes for tensor in tensors.values() for ref in leaves(tensor)),
        held=held,
        memory=memory,
        dtypes=_dtypes(code, tensors),
        free=free_memory(),
        adapter=extra,
        joins=residence(tensors, shards),
        rules=[(rule.to_dict(), count) for rule, count in zip(rules.rules, mapped.claimed, strict=True)],
        dropped=len(mapped.dropped),
        notes=[*checkpoint.warnings, *notes],
        ranks=ranks,
        devices=spread.rows if spread else [],
    )


def _settled(
    shell: Shell | nn.Module, checkpoint: Checkpoint, asked: AnyQuantisation | None, *, auto: bool
) -> tuple[Shell | nn.Module, torch.dtype | None, AnyQuantisation | None]:
    """Return how a load without a dtype loads a model: in one dtype, for a class of transformers, and packed how."""
    from shardload.loading.packed import refuse_undecided
    from shardload.model.shell import Shell
    from shardload.transformers_classes.one_dtype import in_one_dtype, is_library_class

    quantised, as_stored = asked, False
    if checkpoint.may_be_packed:
        quantised, as_stored = settled(asked, checkpoint.config, checkpoint.tensors)
    whole = shell if isinstance(shell, Shell) else Shell.of(shell)
    of_library = auto and is_library_class(type(whole.model))
    if not as_stored and (of_library or asked):
        refuse_undecided(checkpoint, asked)
    if not of_library:
        return shell, None, quantised
    return replace(whole, one_dtype=True), in_one_dtype(whole.model.config, None, checkpoint)[1], quantised


def _spread(*asked: Any) -> Spread:
    from shardload.placement.spread import Spread

    return Spread(*asked)


def _device_type(device: str | torch.device) -> str:
    name = str(device)
    if name in {"auto", "meta"} or name.startswith("{"):
        raise UsageError(
            Wording("{device} is no device to load on", device=name), cure='pass "cpu" or "cuda"'
        )
    return name.partition(":")[0]


def _download(checkpoint: Checkpoint, tensors: Mapping[str, Derived]) -> int:
    wanted = {ref.shard for tensor in tensors.values() for ref in leaves(tensor)}
    return sum(
        shard.size
        for shard in checkpoint.shards
        if shard.name in wanted and _comes_to_disk(checkpoint.source.open(shard.name))
    )


def _comes_to_disk(file: SourceFile) -> bool:
    return file.is_remote and not file.is_streamed


def _dtypes(code: str | None, tensors: Mapping[str, Derived]) -> dict[str, int]:
    nbytes: Counter[str] = Counter()
    for tensor in tensors.values():
        out = code_after_cast(tensor, code)
        nbytes[TORCH_NAMES.get(out, out)] += (tensor.numel * DTYPE_BITS[out] + 7) // 8
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


def _adapter_amounts(where: Where, code: str | None, device: str, base: Mapping[str, Derived]) -> Amounts:
    """Return what an adapter's tensors take on top of a base."""
    from shardload.adapters.on_load import adapter_memory
    from shardload.adapters.source import open_adapter

    tensors = open_adapter(where).checkpoint.tensors.values()
    memory = adapter_memory(tensors, base.values(), code, device)
    return Amounts(memory.anonymous, memory.mapped, memory.device)
