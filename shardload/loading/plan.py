"""Plan: which stored tensor goes where. Made from headers alone; not a byte of weights is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from shardload.errors import UsageError
from shardload.keymap import Derived, Residence, as_view, residence, second_views
from shardload.tensor_ref import TORCH_NAMES, TensorRef

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import KeyMap
    from shardload.model.module_loaders import Zones
    from shardload.model.shell import Shell, Slot

FaultKind = Literal["missing", "unexpected", "misshapen", "refused"]


@dataclass(frozen=True)
class Fault:
    """One disagreement. `key` is the model's name; `stored_key` the checkpoint's, where a key map renamed it.

    "missing": the model has it, the checkpoint does not. "unexpected": the other way round. "misshapen": both,
    with different shapes. "refused": something else, said in `note`.
    """

    kind: FaultKind
    key: str
    stored_key: str | None = None
    model_shape: tuple[int, ...] | None = None
    model_dtype: str | None = None
    stored_shape: tuple[int, ...] | None = None
    stored_dtype: str | None = None
    shard: str | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fault as JSON data, without the parts that are not known."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class Plan:
    """Where every stored tensor goes.

    `direct` maps a slot's name to the tensor that fills it. `handed` maps the prefix of each subtree with a
    loader of its own (an override or a hook) to everything that is handed to it. `computed` are stored copies
    of what the class computes. `dropped` are keys that the key map leaves out, `forgiven` names that are
    missing and that a hook of the class takes off the list. `mapped` is all that the key map makes of the
    checkpoint, by the model's keys, `idle_rules` those of its rules that take no tensor; `turned` are keys
    among them whose views of the file are not contiguous, `copied` those that get memory of their own because
    another has the same bytes; `held` is what takes memory because it is put together.
    """

    direct: dict[str, Derived] = field(default_factory=dict)
    handed: dict[str, dict[str, Any]] = field(default_factory=dict)
    in_place: set[str] = field(default_factory=set)
    computed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    mapped: dict[str, Derived] = field(default_factory=dict)
    idle_rules: list[dict[str, Any]] = field(default_factory=list)
    turned: set[str] = field(default_factory=set)
    copied: set[str] = field(default_factory=set)
    held: Residence = field(default_factory=Residence)

    @property
    def tensors(self) -> Iterable[tuple[str, Derived]]:
        """Every (model key, tensor) pair that the load reads."""
        yield from self.direct.items()
        for entries in self.handed.values():
            yield from ((key, ref) for key, ref in entries.items() if isinstance(ref, Derived))


def match(shell: Shell, zones: Zones, checkpoint: Checkpoint, key_map: KeyMap) -> Plan:
    """Pair stored tensors with slots by name and shape; what has its own loader is handed over, not judged."""
    plan = Plan(handed={root.prefix: {} for root in zones.roots})
    _apply(key_map, checkpoint, plan)
    for key, ref in plan.mapped.items():
        root = zones.root_of(key)
        if root is not None:
            plan.handed[root][key] = ref
        else:
            _match_one(plan, key, ref, shell.slots.get(key))
    for stored, name in key_map.map_objects(checkpoint.objects, plan.mapped).items():
        root = zones.root_of(name) if name is not None else None
        if name is None:
            plan.dropped.append(stored)
        elif root is None:
            plan.faults.append(_not_a_tensor(name, stored, checkpoint))
        else:
            plan.handed[root][name] = checkpoint.objects[stored]
    plan.held = residence((ref for _, ref in plan.tensors), [shard.name for shard in checkpoint.shards])
    met = {*plan.direct, *(fault.key for fault in plan.faults)}
    for name, slot in shell.slots.items():
        if slot.is_stored and name not in met and zones.root_of(name) is None:
            plan.faults.append(missing_fault(slot))
    return plan


def _apply(key_map: KeyMap, checkpoint: Checkpoint, plan: Plan) -> None:
    """Let the key map make the model's tensors out of the stored ones."""
    if not key_map.rules and key_map.source is None:
        plan.mapped = dict(checkpoint.tensors)
        return
    mapped = key_map.map_headers(checkpoint.tensors)
    key_map.require_fit(checkpoint.tensors, mapped)
    plan.mapped = {key: as_view(tensor) or tensor for key, tensor in mapped.tensors.items()}
    plan.dropped += mapped.dropped
    plan.idle_rules += [
        rule.to_dict() for rule, count in zip(key_map.rules, mapped.claimed, strict=True) if not count
    ]
    # Two parameters that were views of the same bytes would be one: what is written to either would show in both.
    plan.copied |= second_views(key_map.rules, plan.mapped)
    for key, ref in plan.mapped.items():
        if isinstance(ref, TensorRef) and ref.strides is not None and checkpoint.tensors.get(ref.name) != ref:
            plan.turned.add(key)


def settle_ties(plan: Plan, shell: Shell) -> None:
    """Keep a tied parameter among the missing only when no name of its group is stored, and then once."""
    missing = {fault.key for fault in plan.faults if fault.kind == "missing"}
    needless: set[str] = set()
    for group in shell.ties:
        lacking = [name for name in group if name in missing]
        needless.update(lacking[1:] if len(lacking) == len(group) else lacking)
    if needless:
        plan.faults = [f for f in plan.faults if f.kind != "missing" or f.key not in needless]


def _match_one(plan: Plan, key: str, ref: Derived, slot: Slot | None) -> None:
    if slot is None:
        plan.faults.append(unexpected_fault(key, ref))
    elif is_recomputed(slot):
        plan.computed.append(key)
    elif not slot.is_stored:
        plan.faults.append(replace(unexpected_fault(key, ref), note=PLAIN_ATTRIBUTE))
    elif slot.shape != ref.shape and not (slot.shape == () and ref.shape == (1,)):
        # torch before 0.4 stored scalars with one dimension; its own loader takes them too.
        plan.faults.append(misshapen_fault(slot, ref))
    elif note := other_kind(slot, ref.dtype):
        plan.faults.append(refused_fault(slot, ref, note))
    else:
        plan.direct[key] = ref


# Tables that published classes compute into plain attributes, and that older checkpoints hold copies of.
_TABLES = frozenset({"inv_freq", "cos_cached", "sin_cached", "freqs_cis", "position_ids", "masked_bias"})

PLAIN_ATTRIBUTE = "the class keeps it as a plain attribute, which no load fills: it would have to be a buffer"


def is_recomputed(slot: Slot) -> bool:
    """Whether the class computes what the slot holds, so that a stored copy may stay unread."""
    return slot.kind == "computed" or (slot.kind == "attribute" and slot.name.rpartition(".")[2] in _TABLES)


def other_kind(slot: Slot, code: str) -> str | None:
    """Return why a slot can't take numbers of the kind that is stored, or None where it can."""
    if code not in TORCH_NAMES:
        return f"stored as {code}, for which torch has no dtype"
    if not (slot.dtype.is_floating_point or slot.dtype.is_complex):
        return None
    stored_as = TORCH_NAMES[code]
    if code.startswith("C") and not slot.dtype.is_complex:
        return f"stored as {stored_as}, and the model holds real numbers"
    if not code.startswith(("F", "BF", "C")):
        return f"stored as {stored_as}: packed or quantised weights need modules that hold them"
    return None


def missing_fault(slot: Slot) -> Fault:
    """Return the fault of a slot that no stored tensor fills."""
    return Fault("missing", slot.name, model_shape=slot.shape, model_dtype=dtype_name(slot))


def unexpected_fault(key: str, ref: Derived) -> Fault:
    """Return the fault of a stored tensor that no slot takes."""
    stored_dtype = TORCH_NAMES.get(ref.dtype, ref.dtype)
    return Fault(
        "unexpected", key, ref.name, stored_shape=ref.shape, stored_dtype=stored_dtype, shard=ref.shard
    )


def misshapen_fault(slot: Slot, ref: Derived) -> Fault:
    """Return the fault of a stored tensor whose slot has another shape."""
    return _paired("misshapen", slot, ref, None)


def refused_fault(slot: Slot, ref: Derived, note: str) -> Fault:
    """Return the fault of a stored tensor that its slot can't take, for the reason in `note`."""
    return _paired("refused", slot, ref, note)


def _paired(kind: FaultKind, slot: Slot, ref: Derived, note: str | None) -> Fault:
    return Fault(
        kind,
        slot.name,
        ref.name,
        model_shape=slot.shape,
        model_dtype=dtype_name(slot),
        stored_shape=ref.shape,
        stored_dtype=TORCH_NAMES.get(ref.dtype, ref.dtype),
        shard=ref.shard,
        note=note,
    )


def _not_a_tensor(key: str, stored: str, checkpoint: Checkpoint) -> Fault:
    kind = type(checkpoint.objects[stored]).__name__
    return Fault("unexpected", key, stored, note=f"an entry of type {kind}, not a tensor")


def dtype_name(slot: Slot) -> str:
    """Return "float16" for torch.float16."""
    return str(slot.dtype).removeprefix("torch.")


@dataclass
class Verdict:
    """The plan's faults, told apart: what stops the load, and what was allowed and by whom."""

    faults: list[Fault]
    allowed: dict[str, list[Fault]]

    @property
    def missing(self) -> list[str]:
        """Model keys that are allowed to be missing: they need a value from somewhere else."""
        return [fault.key for group in self.allowed.values() for fault in group if fault.kind == "missing"]


def judge(
    plan: Plan,
    shell: Shell,
    stored: Iterable[str],
    *,
    strict: bool = True,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Verdict:
    """Set aside the faults that the caller or the class itself allows.

    Patterns are fnmatch patterns on whole keys. Raises UsageError for one that matches nothing or everything.
    """
    fillable = (name for name, slot in shell.slots.items() if slot.is_stored)
    _check_patterns("allow_missing", allow_missing, {*fillable, *(f.key for f in plan.faults)})
    _check_patterns("allow_unexpected", allow_unexpected, {*stored, *(f.key for f in plan.faults)})
    ignore = {
        "missing": _ignored_by_class(shell, "_keys_to_ignore_on_load_missing"),
        "unexpected": _ignored_by_class(shell, "_keys_to_ignore_on_load_unexpected"),
    }
    patterns: Mapping[str, Sequence[str]] = {"missing": allow_missing, "unexpected": allow_unexpected}
    verdict = Verdict([], {})
    forgiven = [missing_fault(shell.slots[name]) for name in plan.forgiven if name in shell.slots]
    if forgiven:
        verdict.allowed["a load_state_dict hook of the class"] = forgiven
    for fault in plan.faults:
        names = {fault.key, fault.stored_key or fault.key}
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns.get(fault.kind, ())):
            reason = f"allow_{fault.kind}"
        elif any(pattern.search(fault.key) for pattern in ignore.get(fault.kind, ())):
            reason = f"the class's _keys_to_ignore_on_load_{fault.kind}"
        elif not strict and fault.kind in patterns:
            reason = "strict=False"
        else:
            verdict.faults.append(fault)
            continue
        verdict.allowed.setdefault(reason, []).append(fault)
    return verdict


def _check_patterns(argument: str, patterns: Sequence[str], keys: set[str]) -> None:
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise UsageError(
            f"{argument} takes a list of patterns", where=repr(patterns), cure=f"{argument}=[{patterns!r}]"
        )
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"{argument} takes a list of texts", where=repr(patterns))
    for pattern in patterns:
        matched = sum(fnmatchcase(key, pattern) for key in keys)
        if matched == 0:
            raise UsageError(
                f"{argument}: {pattern!r} matches no key", cure="patterns match whole keys, as fnmatch does"
            )
        if matched == len(keys) and len(keys) > 1:
            raise UsageError(
                f"{argument}: {pattern!r} matches every key",
                cure="name the keys that may differ; a load of nothing is never what is wanted",
            )


def _ignored_by_class(shell: Shell, attribute: str) -> list[re.Pattern[str]]:
    declared = getattr(shell.model, attribute, None) or ()
    patterns = [declared] if isinstance(declared, str) else declared  # a text is one pattern, not its letters
    try:
        return [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise UsageError(
            f"{attribute} of {type(shell.model).__name__} holds what is no regular expression: {error}",
            where=repr(declared),
        ) from error
