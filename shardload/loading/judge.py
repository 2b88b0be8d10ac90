"""Judges whether a checkpoint fits a model, from names, shapes and headers alone."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload._system.gc_freeze import gc_frozen
from shardload._system.process_memory import size_of
from shardload.checkpoint.adapter_base import adapter_base
from shardload.checkpoint.place import place_of_opened
from shardload.checkpoint.sources.runs import AHEAD
from shardload.errors import Cures, MismatchError, UnsupportedError, Wording
from shardload.keymap import KeyMap, leaves
from shardload.keymap.dequantised import Dequantised
from shardload.keys import collapse
from shardload.loading.head import Heads
from shardload.loading.leniency import Patterns, ignored_by, set_aside
from shardload.loading.memory_plan import state_memory
from shardload.loading.mismatch import declined, mismatch
from shardload.loading.plan import match, narrow, settle_ties, tie_of_stage
from shardload.loading.rehearsal import rehearse
from shardload.loading.report import Report
from shardload.loading.shared_bytes import sharing_bytes
from shardload.model.shell import ADAPTERS, modules_of
from shardload.transformers_classes import LIBRARY, STAND_IN, conversions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.diagnosis.finding import Case, Finding
    from shardload.loading.fault import Fault
    from shardload.loading.memory_plan import MemoryPlan
    from shardload.loading.plan import Plan
    from shardload.model.shell import Shell
    from shardload.placement.target import Target
    from shardload.transformers_classes.conversion import ClassConversion
    from shardload.transformers_classes.legacy_names import LegacyNames

_TIMES, _LARGE = 4, 10**9


@dataclass
class Verdict:
    """The faults of a plan, divided into those that stop the load and those that are allowed, by reason."""

    faults: list[Fault] = field(default_factory=list)
    allowed: dict[str, list[Fault]] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Model keys that are allowed to be missing."""
        return [fault.key for group in self.allowed.values() for fault in group if fault.kind == "missing"]


class Comparison:
    """Compares a model with a checkpoint: makes the plan, and a report with every fault.

    `key_map` is None when the names of the checkpoint are those of the model.
    """

    @gc_frozen
    def __init__(self, shell: Shell, checkpoint: Checkpoint, key_map: KeyMap | None, target: Target) -> None:
        started = time.perf_counter()
        if checkpoint.may_be_packed:
            from shardload.loading.packed import taken_by

            checkpoint = taken_by(target, checkpoint, shell)
        self.shell = shell
        self.checkpoint = checkpoint
        self._key_map = key_map
        self.conversions: tuple[ClassConversion | LegacyNames, ...] = ()
        self._target = target
        self._cure: KeyMap | None = None
        self._case: Case | None = None
        _refuse_own_load_state_dict(shell.model)
        _refuse_scripted(shell)
        _refuse_wrappers(shell, target)
        self.tree = shell.tree
        self.plan: Plan = match(shell, self.tree, checkpoint, self._whole_map(), target)
        self._note_refusals()
        if checkpoint.format != "safetensors":  # whose tensors never share bytes
            self.plan.copied |= sharing_bytes(self.plan.tensors, shell.ties)
        self.versions = (
            _renamed_versions(checkpoint, self.plan) if checkpoint.versions else checkpoint.versions
        )
        # Most models and checkpoints need none of the following steps.
        self.unproven: list[str] = []
        if self.tree.self_loading:
            self.unproven = rehearse(self.plan, shell, self.tree.self_loading, self.versions)
        if shell.ties:
            settle_ties(self.plan, shell)
        if checkpoint.only and (note := tie_of_stage(self.plan, shell, checkpoint)):
            self.unproven.append(note)
        self._found = self._findings()
        self.report = self._report(time.perf_counter() - started)
        narrow(self.plan, target, [shard.name for shard in checkpoint.shards])

    def _whole_map(self) -> KeyMap | None:
        """Return the caller's map and the model's own rules after it; None where there are no rules at all."""
        shell, given = self.shell, self._key_map
        bases = tuple(getattr(sys.modules.get(home), "PreTrainedModel", ()) for home in (STAND_IN, LIBRARY))
        if not any(issubclass(kind, bases) for kind in self.tree.kinds):
            return given
        names = (name for name, slot in shell.slots.items() if slot.is_stored)
        stored = self.checkpoint.tensors if given is None else None
        own = conversions(self.tree.kinds, modules_of(shell.model), names, stored)
        if not own:
            return given
        if given is not None:
            given.require_fit(self.checkpoint.tensors)
        self.conversions = own
        return KeyMap((*(given.rules if given else ()), *own))

    def _note_refusals(self) -> None:
        """Say in the faults of stored tensors why the model's own rules did not take them."""
        refused = {name: why for rule in self.conversions for name, why in rule.refusals.items()}
        if refused:
            self.plan.faults = [
                replace(fault, note=refused[fault.key])
                if fault.kind == "unexpected" and fault.key in refused
                else fault
                for fault in self.plan.faults
            ]

    def _report(self, seconds: float) -> Report:
        plan = self.plan
        report = Report(
            where=self.checkpoint.label,
            revision=self.checkpoint.source.revision,
            format=self.checkpoint.format,
            packing=self.checkpoint.packing,
            class_name=type(self.shell.model).__name__,
            faults=tuple(plan.faults),
            findings=self._found,
            key_map=self._cure,
            seconds={"plan": seconds},
        )
        report.notes += [
            *self.checkpoint.warnings,
            *self.unproven,
            *_notes(plan, self.shell),
            *_kept(plan, self._target.dtypes),
        ]
        if self.checkpoint.packing:
            from shardload.loading.packed import packed_notes

            report.notes += packed_notes(self.checkpoint)
        return report

    def _findings(self) -> tuple[Finding, ...]:
        quantised = "quantization_config" in (self.checkpoint.config or {})
        if not self.plan.faults and (self.plan.claims or not quantised):
            return ()
        from shardload.diagnosis import diagnose, proposed
        from shardload.diagnosis.finding import Case

        stored = dict(self.plan.tensors)
        keys: dict[str, list[str]] = {}
        for fault in self.plan.faults:
            keys.setdefault(fault.kind, []).append(fault.key)
            if fault.key in self.plan.mapped:
                stored[fault.key] = self.plan.mapped[fault.key]
        missing, dropped = keys.get("missing", []), set(self.plan.dropped)
        case = self._case = Case(
            slots={name: slot.shape for name, slot in self.shell.slots.items() if slot.is_stored},
            stored=stored,
            missing=[key for key in missing if key not in dropped],
            dropped=[key for key in missing if key in dropped],
            unexpected=keys.get("unexpected", ()),
            shape_mismatches=keys.get("misshapen", ()),
            refused=keys.get("refused", ()),
            config=self._config(),
            module_classes=_module_classes(self.shell.model),
            own_rules=self._key_map.rules if self._key_map else (),
            where=place_of_opened(self.checkpoint),
            files=len(self.checkpoint.shards),
            beside=self.checkpoint.source.names(),
            adapter_base=adapter_base(self.checkpoint.source),
        )
        findings = diagnose(case)
        if any(finding.code == "E-QUANT" for finding in findings):
            from shardload.loading.packed import checked

            findings = checked(findings, self.checkpoint)
        if not any(finding.declines for finding in findings) and case.solution.key_map.rules:
            self._cure = proposed(self._key_map, case.solution.key_map, findings)
        return findings

    def _config(self) -> Mapping[str, Any]:
        """Return config.json; of a repo of several models, what it says of the part that this model is."""
        from shardload.transformers_classes.config_part import part_name

        config = self.checkpoint.config or {}
        part = part_name(type(getattr(self.shell.model, "config", None)), config)
        return config if part is None else {part: config[part]}

    def judge(
        self, *, strict: bool = True, allow_missing: Patterns = (), allow_unexpected: Patterns = ()
    ) -> Verdict:
        """Separate the allowed faults from the others, which become the faults of the report."""
        verdict = Verdict()
        if self.plan.faults or self.plan.forgiven or allow_missing != () or allow_unexpected != ():
            verdict = Verdict(
                *set_aside(
                    self.plan,
                    self.shell,
                    self.checkpoint.tensors,
                    strict=strict,
                    allow_missing=allow_missing,
                    allow_unexpected=allow_unexpected,
                )
            )
        self.report.faults = tuple(verdict.faults)
        self.report.allowed = verdict.allowed
        if not verdict.faults:
            self.report.findings = tuple(finding for finding in self._found if finding.declines)
            self.report.key_map = None
        else:
            self.report.cure = self._whole_cure()
        return verdict

    def _whole_cure(self) -> str | None:
        if self._case is None:
            return None
        from shardload.diagnosis import whole_cure

        return whole_cure(self._case, self._found, ignored_by(self.shell))

    def unfilled(self, verdict: Verdict) -> list[str]:
        """Return the allowed missing names that no tie fills: their values have to come from the class."""
        if not verdict.allowed:
            return []
        stored = {name for name, _ in self.plan.tensors}
        tied = {name for group in self.shell.ties if not stored.isdisjoint(group) for name in group}
        return [name for name in verdict.missing if name not in tied]

    def memory(self, missing: Collection[str], *, copy: bool) -> MemoryPlan:
        """Return the memory that the load takes; `missing` are parameters that the class initialises."""
        shards = [shard.name for shard in self.checkpoint.shards]
        ahead = AHEAD if self.checkpoint.source.is_streamed else 0
        return state_memory(self.plan, self.shell, shards, missing, self._target, copy=copy, ahead=ahead)

    def refuse_if_faulty(self, verdict: Verdict) -> None:
        """Raise MismatchError or UnsupportedError for a load that has to be refused; the model has not been touched.

        Allowed faults are refused too when nothing at all would be loaded, or when the checkpoint is quantised and the
        model is not.
        """
        if not (verdict.faults or verdict.allowed or self.report.findings):
            return
        allowed = [fault for group in verdict.allowed.values() for fault in group]
        unexpected = {fault.key for fault in (*verdict.faults, *allowed) if fault.kind == "unexpected"}
        taken = any(key not in unexpected for entries in self.plan.handed.values() for key in entries)
        if allowed and not self.plan.direct and not self.plan.claims and not taken:
            self.report.findings, self.report.cure = self._found, self._whole_cure()
            self._raise([*verdict.faults, *allowed])
        if verdict.faults or any(finding.declines for finding in self.report.findings):
            self._raise([*verdict.faults, *([] if verdict.faults else allowed)])

    def refuse_oversized(self, verdict: Verdict) -> None:
        """Raise MismatchError when missing parameters would take memory in a model far larger than its checkpoint.

        When the model takes over 1 GB and over 4 times the bytes of the checkpoint, each missing parameter has to match
        `allow_missing`: the sizes in a config are untrusted, and missing parameters are initialised in real memory.
        """
        if not verdict.allowed:
            return
        unnamed = [
            fault for reason, group in verdict.allowed.items() if reason != "allow_missing" for fault in group
        ]
        rest = sorted({fault.key for fault in unnamed if fault.kind == "missing"})
        again = {name for group in self.shell.ties for name in group[1:]}
        slots = self.shell.slots.values()
        model = sum(slot.nbytes for slot in slots if slot.is_stored and slot.name not in again)
        stored = sum(tensor.nbytes for tensor in self.checkpoint.tensors.values())
        if not rest or self.shell.make is None or model <= max(_TIMES * stored, _LARGE):
            return
        raise MismatchError(
            f"the model takes {model:,} bytes and its checkpoint has {stored:,}: {len(rest)} parameters that the "
            "checkpoint lacks would be made in memory; nothing was loaded",
            where=f"{self.checkpoint.label}: {', '.join(collapse(rest)[:8])}",
            cure=Wording(
                "check the sizes in the config; or name the parameters that may be missing in {allow_missing}",
                allow_missing=...,
            ),
        )

    def _raise(self, faults: Sequence[Fault]) -> None:
        for finding in self.report.findings:
            if finding.declines:
                raise declined(self.report, finding)
        stored = (name for name, slot in self.shell.slots.items() if slot.is_stored)
        heads = Heads(self.shell.model, stored, self.checkpoint.tensors)
        raise mismatch(self.report, faults, heads.cure(faults))


def _renamed_versions(checkpoint: Checkpoint, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the checkpoint's versions of modules by path, renamed as the key map renames the keys below a path."""
    paths: dict[str, str] = {}
    for old, new in ((ref.name, key) for key, tensor in plan.mapped.items() for ref in leaves(tensor)):
        before, after = old.split("."), new.split(".")
        # After the common end of both names is removed, the old path is left on one side and the new path on the other:
        # a.b.weight -> x.weight shows that a.b is x now.
        while before and after and before[-1] == after[-1]:
            before, after = before[:-1], after[:-1]
            paths.setdefault(".".join(before), ".".join(after))
    return {paths.get(path, path): entry for path, entry in checkpoint.versions.items()}


def _module_classes(model: nn.Module) -> dict[str, str]:
    from shardload.model.wrapper_tensors import class_of

    return {path: class_of(module).__name__ for path, module in model.named_modules()}


def _refuse_own_load_state_dict(model: nn.Module) -> None:
    kind = type(model)
    if kind.load_state_dict is not nn.Module.load_state_dict:
        raise UnsupportedError(
            f"{kind.__name__} overrides load_state_dict, which can't be fed shard by shard",
            where=f"{kind.__module__}.{kind.__qualname__}",
            cure=Cures(
                "move its code to _load_from_state_dict or a load_state_dict pre-hook",
                Wording("rename the keys by {key_map}", key_map=...),
            ),
        )


def _refuse_scripted(shell: Shell) -> None:
    if not any(issubclass(kind, torch.jit.ScriptModule) for kind in shell.tree.kinds):
        return
    scripted = [
        path[:-1] for path, module in modules_of(shell.model) if isinstance(module, torch.jit.ScriptModule)
    ]
    raise UnsupportedError(
        "the parameters of a scripted module can't be assigned from Python",
        where=", ".join(path or "the model itself" for path in scripted[:4]),
        cure="fill the model first, and call torch.jit.script on the filled module",
    )


def _refuse_wrappers(shell: Shell, target: Target) -> None:
    """Refuse tensors of other classes, unless the target assigns; and a model whose adapters hold its own tensors."""
    adapters = vars(shell.model).get(ADAPTERS)
    if adapters is not None:
        adapters.refuse_fill()
    if shell.has_other_tensors() and not target.assigns:
        from shardload.model.wrapper_tensors import refuse_wrapped

        refuse_wrapped(shell.model, "a load")


def _notes(plan: Plan, shell: Shell) -> list[str]:
    notes = []
    if plan.computed:
        notes += [
            f"{pattern}: a stored copy of a tensor that the class computes; the copy is not used"
            for pattern in collapse(plan.computed)
        ]
    if plan.dropped:
        notes += [f"{pattern}: dropped by the key map" for pattern in collapse(plan.dropped)]
    notes += _key_map_notes(plan)
    stored = {key for key, _ in plan.tensors} if shell.ties else set()
    for group in shell.ties:
        copies = [name for name in group if name in stored]
        if len(copies) > 1:
            notes.append(f"{' and '.join(copies)} are tied and both stored: two copies, compared at load")
    return notes


def _kept(plan: Plan, dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """Return notes on weights that the class keeps in float32 though they are stored, or loaded, in less."""
    kept = [key for key, _ in plan.tensors if dtypes.get(key) is torch.float32]
    return [f"{pattern}: in float32, where the class keeps it" for pattern in collapse(kept)] if kept else []


def _key_map_notes(plan: Plan) -> list[str]:
    """Return notes on rules without effect, copies, and views that are not contiguous."""
    notes = [f"key map: this rule takes no tensor: {rule}" for rule in plan.idle_rules]
    held = plan.held
    if held.joined and not any(isinstance(tensor, Dequantised) for _, tensor in plan.tensors):
        notes.append(
            f"key map: {held.joined} tensors are joined in new memory ({size_of(held.nbytes)}, at most "
            f"{size_of(held.peak)} of it incomplete at one time; {held.across} across shards)"
        )
    if plan.copied:
        notes.append(
            f"{len(plan.copied)} tensors are copied: another name has the same bytes (tied names stay one)"
        )
    turned = plan.turned & plan.direct.keys()
    if turned:
        notes.append(f"key map: {len(turned)} tensors are views of their file that are not contiguous")
    return notes
