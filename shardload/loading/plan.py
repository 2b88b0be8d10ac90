"""Plan: decides which stored tensor fills which slot, from headers alone; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError
from shardload.keymap import Derived, Residence, as_view, residence, second_views
from shardload.keymap.rules import RULES
from shardload.loading.fault import (
    Fault,
    missing_fault,
    not_a_tensor_fault,
    refused_fault,
    shape_mismatch_fault,
    unexpected_fault,
)
from shardload.placement.target import Target
from shardload.tensor_ref import TORCH_NAMES, TensorRef, torch_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import KeyMap
    from shardload.model.module_tree import ModuleTree
    from shardload.model.shell import Shell, Slot
    from shardload.placement.target import Claim


@dataclass
class Plan:
    """Where every stored tensor goes.

    `mapped` holds every tensor after the key map, by the model's keys. `direct` maps the name of a slot to the tensor
    that fills it; `handed` maps the prefix of each self-loading subtree to the entries that its loaders get. `claims`
    are the target's claims: `claimed` has them by stored name, `made` by slot. `parts` names the slots for which the
    target reads only a part of the stored tensor.

    `computed` are stored copies of tensors that the class computes, `dropped` are keys that the key map drops,
    `idle_rules` are rules of the key map that take no tensor, `forgiven` are missing names that a hook of the class
    removes from the list. For memory: `in_place` are parameters that a module's loader writes to; `own_results` has the
    bytes of parameters for which a loader makes new tensors; `turned` are views of the file that are not contiguous;
    `copied` are tensors that get a copy because another tensor has the same bytes; `held` counts the tensors that have
    to be joined.
    """

    mapped: dict[str, Derived] = field(default_factory=dict)

    direct: dict[str, Derived] = field(default_factory=dict)
    handed: dict[str, dict[str, Any]] = field(default_factory=dict)
    in_place: set[str] = field(default_factory=set)
    own_results: dict[str, int] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    claimed: dict[str, Claim] = field(default_factory=dict)
    made: dict[str, Claim] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    idle_rules: list[dict[str, Any]] = field(default_factory=list)
    turned: set[str] = field(default_factory=set)
    copied: set[str] = field(default_factory=set)
    held: Residence = field(default_factory=Residence)

    @property
    def tensors(self) -> Iterable[tuple[str, Derived]]:
        """Every (name, tensor) pair that the load reads; the name is a key of the model or of a claimed tensor."""
        yield from self.direct.items()
        yield from ((name, self.mapped[name]) for name in self.claimed)
        for entries in self.handed.values():
            yield from ((key, ref) for key, ref in entries.items() if isinstance(ref, Derived))


def match(
    shell: Shell, tree: ModuleTree, checkpoint: Checkpoint, key_map: KeyMap | None, target: Target
) -> Plan:
    """Return the plan that pairs stored tensors with slots by name and shape.

    The tensors of self-loading subtrees are handed over without a check; tensors that the target claims take no part in
    the pairing. `key_map` is None when no tensor changes its name.
    """
    plan = Plan(handed={root.prefix: {} for root in tree.self_loading})
    if key_map is None:
        plan.mapped = dict(checkpoint.tensors)
    else:
        _apply(key_map, checkpoint, plan)
    if type(target).claims is not Target.claims:
        _claim(plan, shell, target)
    hands_over = bool(tree.self_loading)
    for key, ref in plan.mapped.items():
        if key in plan.claimed:
            continue
        root = tree.root_of(key) if hands_over else None
        if root is not None:
            plan.handed[root][key] = ref
        else:
            _match_one(plan, key, ref, shell.slots.get(key))
    if checkpoint.objects:
        _hand_over_objects(plan, tree, checkpoint, key_map)
    if key_map is not None or not all(type(ref) is TensorRef for ref in plan.mapped.values()):
        plan.held = residence((ref for _, ref in plan.tensors), [shard.name for shard in checkpoint.shards])
    met = {*plan.direct, *plan.made, *shell.added(), *(fault.key for fault in plan.faults)}
    for name, slot in shell.slots.items():
        if slot.is_stored and name not in met and not (hands_over and tree.root_of(name) is not None):
            plan.faults.append(missing_fault(slot))
    return plan


def _claim(plan: Plan, shell: Shell, target: Target) -> None:
    """Record the claims of the target: the stored tensors that it takes and the slots that it fills."""
    for claim in target.claims(shell.slots, plan.mapped):
        plan.claims.append(claim)
        for name in claim.stored.values():
            plan.claimed[name] = claim
        for name in claim.fills:
            if name not in shell.slots:
                raise UsageError(
                    f"the target claims to fill {name!r}, which is no slot of the model", where=repr(claim)
                )
            plan.made[name] = claim


def narrow(plan: Plan, target: Target, shards: Sequence[str]) -> None:
    """Reduce each tensor of the plan to the part that the target wants, after the whole tensors were judged."""
    if type(target).part is Target.part:
        return
    for key, whole in plan.direct.items():
        part = target.part(key, whole)
        if part is not whole:
            plan.direct[key] = as_view(part) or part
            plan.parts.add(key)
    if plan.held.joined or any(not isinstance(plan.direct[key], TensorRef) for key in plan.parts):
        plan.held = residence((ref for _, ref in plan.tensors), shards)


def _hand_over_objects(plan: Plan, tree: ModuleTree, checkpoint: Checkpoint, key_map: KeyMap | None) -> None:
    """Hand entries of pickled state dicts that are not tensors to self-loading subtrees; any other one is a fault."""
    objects = checkpoint.objects
    named = {name: name for name in objects} if key_map is None else key_map.map_objects(objects, plan.mapped)
    for stored, name in named.items():
        root = tree.root_of(name) if name is not None else None
        if name is None:
            plan.dropped.append(stored)
        elif root is None:
            plan.faults.append(not_a_tensor_fault(name, stored, checkpoint))
        else:
            plan.handed[root][name] = objects[stored]


def _apply(key_map: KeyMap, checkpoint: Checkpoint, plan: Plan) -> None:
    """Apply the key map to the headers of the checkpoint, and record its results in the plan."""
    mapped = key_map.map_headers(checkpoint.tensors)
    key_map.require_fit(checkpoint.tensors, mapped)
    plan.mapped = {key: as_view(tensor) or tensor for key, tensor in mapped.tensors.items()}
    plan.dropped += mapped.dropped
    plan.idle_rules += [
        rule.to_dict()
        for rule, count in zip(key_map.rules, mapped.claimed, strict=True)
        if not count and rule.op in RULES
    ]
    # Two parameters that are views of the same bytes would act as one: a write to either would change both.
    plan.copied |= second_views(key_map.rules, plan.mapped)
    for key, ref in plan.mapped.items():
        if isinstance(ref, TensorRef) and ref.strides is not None and checkpoint.tensors.get(ref.name) != ref:
            plan.turned.add(key)


def tie_of_stage(plan: Plan, shell: Shell, checkpoint: Checkpoint) -> str | None:
    """Fill the output layer of a pipeline's last stage with the embedding, where the config ties the two.

    The stage has one of the two names, and the checkpoint stores the other. Return a note, or None where nothing is to
    be filled, or where more than one tensor could be.
    """
    if not checkpoint.only or not (checkpoint.config or {}).get("tie_word_embeddings"):
        return None
    missing = [
        fault for fault in plan.faults if fault.kind == "missing" and len(shell.slots[fault.key].shape) > 1
    ]
    spare = [fault for fault in plan.faults if fault.kind == "unexpected"]
    if len(missing) != 1 or len(spare) != 1:
        return None
    slot, ref = shell.slots[missing[0].key], plan.mapped[spare[0].key]
    if ref.shape != slot.shape or other_kind(slot.dtype, ref.dtype):
        return None
    plan.faults = [fault for fault in plan.faults if fault not in (missing[0], spare[0])]
    plan.direct[slot.name] = ref
    return f"{slot.name}: filled with {spare[0].key}, which the config ties to the output layer"


def settle_ties(plan: Plan, shell: Shell) -> None:
    """Drop the missing faults of tied names if any name of the group is stored; else keep one fault per group."""
    missing = {fault.key for fault in plan.faults if fault.kind == "missing"}
    needless: set[str] = set()
    for group in shell.ties:
        lacking = [name for name in group if name in missing]
        needless.update(lacking[1:] if len(lacking) == len(group) else lacking)
    if needless:
        plan.faults = [f for f in plan.faults if f.kind != "missing" or f.key not in needless]


def _match_one(plan: Plan, key: str, ref: Derived, slot: Slot | None) -> None:
    if (
        slot is not None
        and slot.is_stored
        and slot.shape == ref.shape
        and other_kind(slot.dtype, ref.dtype) is None
    ):
        plan.direct[key] = ref
    elif slot is None:
        plan.faults.append(unexpected_fault(key, ref))
    elif is_recomputed(slot):
        plan.computed.append(key)
    elif not slot.is_stored:
        plan.faults.append(replace(unexpected_fault(key, ref), note=PLAIN_ATTRIBUTE))
    elif torch_shape(ref.dtype, ref.shape) != slot.shape and not (slot.shape == () and ref.shape == (1,)):
        # torch before 0.4 stored scalars with one dimension; torch's own loader accepts them too.
        plan.faults.append(shape_mismatch_fault(slot, ref))
    elif note := other_kind(slot.dtype, ref.dtype):
        plan.faults.append(refused_fault(slot, ref, note))
    else:
        plan.direct[key] = ref


# Tables that published classes compute into plain attributes, while older checkpoints hold copies of them.
_TABLES = frozenset({"inv_freq", "cos_cached", "sin_cached", "freqs_cis", "position_ids", "masked_bias"})

PLAIN_ATTRIBUTE = "the class keeps it as a plain attribute, which a load can't fill: make it a buffer"


def is_recomputed(slot: Slot) -> bool:
    """Whether the class computes the tensor of a slot, so that a stored copy is not needed."""
    return slot.kind == "computed" or (slot.kind == "attribute" and slot.name.rpartition(".")[2] in _TABLES)


@lru_cache(maxsize=256)
def other_kind(dtype: torch.dtype, code: str) -> str | None:
    """Return why a slot of a dtype can't take numbers of the stored kind, or None if it can."""
    if code == "F4" and str(dtype) != f"torch.{TORCH_NAMES[code]}":
        return f"stored as {TORCH_NAMES[code]}: packed or quantised weights need modules that hold them"
    if code not in TORCH_NAMES:
        return f"stored as {code}, for which torch has no dtype"
    if not (dtype.is_floating_point or dtype.is_complex):
        return None
    stored_as = TORCH_NAMES[code]
    if code.startswith("C") and not dtype.is_complex:
        return f"stored as {stored_as}, but the model holds real numbers"
    if not code.startswith(("F", "BF", "C")):
        return f"stored as {stored_as}: packed or quantised weights need modules that hold them"
    return None
