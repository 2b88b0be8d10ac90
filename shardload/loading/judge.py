"""Comparison: a model and a checkpoint side by side, judged from names, shapes and headers alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload._system.process_memory import size_of
from shardload.diagnosis import diagnose
from shardload.diagnosis.finding import Case
from shardload.errors import MismatchError, UnsupportedError
from shardload.keymap import KeyMap, leaves
from shardload.keys import collapse
from shardload.loading.plan import Fault, Plan, Verdict, judge, match, settle_ties
from shardload.loading.rehearsal import rehearse
from shardload.loading.report import Report, fault_text, headline
from shardload.model.module_loaders import zones_of
from shardload.model.shell import modules_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.diagnosis.finding import Finding
    from shardload.model.shell import Shell


_TIMES, _LARGE = 4, 10**9


class Comparison:
    """A model and a checkpoint side by side: the plan, and the report with every fault in it."""

    def __init__(self, shell: Shell, checkpoint: Checkpoint, key_map: KeyMap) -> None:
        started = time.perf_counter()
        self.shell = shell
        self.checkpoint = checkpoint
        self._key_map = key_map
        self._cure: KeyMap | None = None
        _refuse_own_load_state_dict(shell.model)
        _refuse_scripted(shell.model)
        self.zones = zones_of(shell.model)
        self.plan: Plan = match(shell, self.zones, checkpoint, key_map)
        self.versions = _renamed_versions(checkpoint, self.plan)
        self.unproven = rehearse(self.plan, shell, self.zones.roots, self.versions)
        settle_ties(self.plan, shell)
        self._found = self._findings()
        self.report = self._report(time.perf_counter() - started)

    def _report(self, seconds: float) -> Report:
        plan = self.plan
        report = Report(
            where=self.checkpoint.label,
            revision=self.checkpoint.source.revision,
            format=self.checkpoint.format,
            class_name=type(self.shell.model).__name__,
            faults=tuple(plan.faults),
            findings=self._found,
            key_map=self._cure,
            seconds={"plan": seconds},
        )
        report.notes += [*self.checkpoint.warnings, *self.unproven, *_notes(plan, self.shell)]
        return report

    def _findings(self) -> tuple[Finding, ...]:
        if not self.plan.faults and "quantization_config" not in (self.checkpoint.config or {}):
            return ()
        stored = dict(self.plan.tensors)
        keys: dict[str, list[str]] = {}
        for fault in self.plan.faults:
            keys.setdefault(fault.kind, []).append(fault.key)
            if fault.key in self.plan.mapped:
                stored[fault.key] = self.plan.mapped[fault.key]
        case = Case(
            slots={name: slot.shape for name, slot in self.shell.slots.items() if slot.is_stored},
            stored=stored,
            missing=keys.get("missing", ()),
            unexpected=keys.get("unexpected", ()),
            misshapen=keys.get("misshapen", ()),
            config=self.checkpoint.config or {},
            module_classes=_module_classes(self.shell.model),
        )
        findings = diagnose(case)
        if not any(finding.declines for finding in findings) and case.solution.key_map.rules:
            self._cure = KeyMap((*self._key_map.rules, *case.solution.key_map.rules))
        return findings

    def judge(self, **leniency: Any) -> Verdict:
        """Set aside what is allowed; the report's faults are what is left."""
        verdict = judge(self.plan, self.shell, self.checkpoint.tensors, **leniency)
        self.report.faults = tuple(verdict.faults)
        self.report.allowed = verdict.allowed
        if not verdict.faults:
            self.report.findings = tuple(finding for finding in self._found if finding.declines)
            self.report.key_map = None
        return verdict

    def refuse_if_faulty(self, verdict: Verdict) -> None:
        """Raise for what is left of the faults: nothing has been touched.

        Leniency is no reason to load nothing at all, nor to take a quantised checkpoint for another.
        """
        allowed = [fault for group in verdict.allowed.values() for fault in group]
        unexpected = {fault.key for fault in (*verdict.faults, *allowed) if fault.kind == "unexpected"}
        taken = any(key not in unexpected for entries in self.plan.handed.values() for key in entries)
        if allowed and not self.plan.direct and not taken:
            self.report.findings = self._found
            self._raise([*verdict.faults, *allowed])
        if verdict.faults or any(finding.declines for finding in self.report.findings):
            self._raise([*verdict.faults, *([] if verdict.faults else allowed)])

    def refuse_oversized(self, verdict: Verdict) -> None:
        """Raise MismatchError where memory would be made for a model that is many times its checkpoint.

        Over 4 times the checkpoint's bytes and over 1 GB: then whatever is missing has to be named in
        `allow_missing`. A config's sizes are anybody's, and what is missing is initialised in real memory.
        """
        unnamed = [
            fault for reason, group in verdict.allowed.items() if reason != "allow_missing" for fault in group
        ]
        rest = sorted({fault.key for fault in unnamed if fault.kind == "missing"})
        again = {name for group in self.shell.ties for name in group[1:]}
        slots = self.shell.slots.values()
        model = sum(slot.nbytes for slot in slots if slot.is_stored and slot.name not in again)
        stored = self.checkpoint.nbytes
        if not rest or self.shell.make is None or model <= max(_TIMES * stored, _LARGE):
            return
        raise MismatchError(
            f"the model takes {model:,} bytes and its checkpoint has {stored:,}: {len(rest)} parameters that it "
            "lacks would be made in memory; nothing was loaded",
            where=f"{self.checkpoint.label}: {', '.join(collapse(rest)[:8])}",
            cure="check the sizes in the config; allow_missing=[…] names what may be missing all the same",
        )

    def _raise(self, faults: Sequence[Fault]) -> None:
        for finding in self.report.findings:
            if finding.declines:
                raise UnsupportedError(finding.cause, where=self.checkpoint.label, cure=finding.cure)
        raise mismatch(self.report, faults)


def _renamed_versions(checkpoint: Checkpoint, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the checkpoint's versions under the paths that the key map gives to the keys below them."""
    if not checkpoint.versions:
        return checkpoint.versions
    paths: dict[str, str] = {}
    for old, new in ((ref.name, key) for key, tensor in plan.mapped.items() for ref in leaves(tensor)):
        before, after = old.split("."), new.split(".")
        # What both names end with is what the path was: a.b.weight -> x.weight tells that a.b is x now.
        while before and after and before[-1] == after[-1]:
            before, after = before[:-1], after[:-1]
            paths.setdefault(".".join(before), ".".join(after))
    return {paths.get(path, path): entry for path, entry in checkpoint.versions.items()}


def _module_classes(model: nn.Module) -> dict[str, str]:
    return {path: type(module).__name__ for path, module in model.named_modules()}


def _refuse_own_load_state_dict(model: nn.Module) -> None:
    kind = type(model)
    if kind.load_state_dict is not nn.Module.load_state_dict:
        raise UnsupportedError(
            f"{kind.__name__} overrides load_state_dict, which can't be fed shard by shard",
            where=f"{kind.__module__}.{kind.__qualname__}",
            cure="move what it does to _load_from_state_dict or a load_state_dict pre-hook, or to key_map=",
        )


def _refuse_scripted(model: nn.Module) -> None:
    scripted = [path[:-1] for path, module in modules_of(model) if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise UnsupportedError(
            "a scripted module keeps its parameters out of Python's reach: they can't be assigned",
            where=", ".join(path or "the model itself" for path in scripted[:4]),
            cure="fill the model first, and call torch.jit.script on the filled module",
        )


def _notes(plan: Plan, shell: Shell) -> list[str]:
    notes = [
        f"{pattern}: a stored copy of what the class computes; the computed one stays"
        for pattern in collapse(plan.computed)
    ]
    notes += [f"{pattern}: dropped by the key map" for pattern in collapse(plan.dropped)]
    notes += _key_map_notes(plan)
    stored = {key for key, _ in plan.tensors}
    for group in shell.ties:
        copies = [name for name in group if name in stored]
        if len(copies) > 1:
            notes.append(f"{' and '.join(copies)} are tied and both stored: two copies, compared at load")
    return notes


def _key_map_notes(plan: Plan) -> list[str]:
    """Say what the key map costs: copies, and views that are not contiguous."""
    notes = [f"key map: this rule takes no tensor: {rule}" for rule in plan.idle_rules]
    held = plan.held
    if held.joined:
        notes.append(
            f"key map: {held.joined} tensors are put together in memory of their own ({size_of(held.nbytes)}, "
            f"at most {size_of(held.peak)} of it begun and not complete at one moment; {held.across} across shards)"
        )
    if plan.copied:
        notes.append(
            f"key map: {len(plan.copied)} second names get a copy of their own, unless the model ties them"
        )
    turned = plan.turned & plan.direct.keys()
    if turned:
        notes.append(f"key map: {len(turned)} tensors are views of their file that are not contiguous")
    return notes


def mismatch(report: Report, faults: Sequence[Fault]) -> MismatchError:
    """Return the error for faults: headline, findings with their cures, and the faults grouped by template."""
    report.faults = tuple(faults)
    error = MismatchError(
        f"the checkpoint does not fit {report.class_name}: {headline(faults)}; nothing was loaded\n\n"
        + fault_text(faults, report.findings),
        where=report.where,
        cure=_cure(report, faults),
    )
    error.report = report
    return error


def _cure(report: Report, faults: Sequence[Fault]) -> str:
    if report.findings:
        first = report.findings[0]
        if report.key_map is None:
            return "; ".join(dict.fromkeys(finding.cure for finding in report.findings[:2]))
        if first.key_map and len(report.key_map.rules) == 1:
            return first.cure
        rules = (
            f"{len(report.key_map.rules)} rules, error.report.key_map: write them with `shardload doctor … "
            "--write-map map.json`, look at them, and load with `--map map.json`"
        )
        return rules if first.key_map else f"{first.cure}; and {rules}"
    kinds = {fault.kind for fault in faults}
    hints = [
        f"allow_{kind}=[…] for keys that may differ" for kind in ("missing", "unexpected") if kind in kinds
    ]
    return "; ".join(
        [*hints, "key_map= to rename keys", "or the class and config that belong to this checkpoint"]
    )
