"""examine: what is wrong with a checkpoint, alone or in a model, or with an adapter. Reads headers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload import remote_code
from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.checkpoint.index import find_weight_files
from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.place import place_of_opened
from shardload.checkpoint.sources import find_source
from shardload.diagnosis import diagnose
from shardload.diagnosis.examination import Examination
from shardload.diagnosis.finding import Case, Finding
from shardload.errors import (
    CorruptError,
    Cures,
    MismatchError,
    NoInverseError,
    NotFoundError,
    ShardloadError,
    UnsupportedError,
    UsageError,
    Wording,
    joined,
    keyword,
    keywords_of,
)
from shardload.keymap import KeyMap
from shardload.keys import collapse
from shardload.keywords import entry_point, place_of, trust_of
from shardload.loading.fill import check
from shardload.loading.packed import checked
from shardload.model.shell import build_shell, modules_of
from shardload.placement.any_quantisation import settled, target_for
from shardload.transformers_classes import conversions

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import nn
    from typing_extensions import Unpack

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.checkpoint.index import WeightFiles
    from shardload.keymap import Names
    from shardload.keywords import ModelKeywords
    from shardload.model.shell import Shell
    from shardload.placement.target import Target
    from shardload.where import CodeTrust, Where, WhereLike

_SHOWN = 8
_ALLOWING = ("allow_missing", "allow_unexpected")


@entry_point
def examine(
    where: WhereLike,
    *,
    model_class: Callable[[Any], nn.Module] | None = None,
    like: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    auto_class: str | None = None,
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    **keywords: Unpack[ModelKeywords],
) -> Examination:
    """Say what is wrong with a checkpoint and what cures it. Only headers are read.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.ModuleDict({"module": torch.nn.Linear(4, 2)}), "wrapped")
        >>> found = shardload.examine("wrapped", model_class=lambda config: torch.nn.Linear(4, 2))
        >>> [finding.code for finding in found.findings], found.cured
        (['E-WRAP'], True)
        >>> found.key_map.apply("module.weight")
        'weight'

    Compared with the model of `model_class` (or of the repo's own class, as in `from_pretrained`), or with the keys of
    the checkpoint `like`; without either, and where the repo's code is not trusted, headers and index are
    judged alone. With `adapter` the adapter is judged on the model. `key_map` is a map that you have: its rules come
    first in the one that is found. Files that are no checkpoint, absent shards and
    contradictions are findings, not errors; raises UsageError, NotFoundError (nothing is there), UnsafeError,
    RemoteCodeError.
    """
    if key_map is not None and (like is not None or adapter is not None):
        raise UsageError(
            Wording("{key_map} is tried on a model's own weights", key_map=...),
            cure=Wording("leave out {like} and {adapter}", like=..., adapter=...),
        )
    place = place_of(where, keywords)
    trust = trust_of(place, keywords)
    try:
        checkpoint = _opened(place, trust, model_class, auto_class)
    except (CorruptError, UnsupportedError, NotFoundError) as error:
        found = _unopened(error, place)
        if found is None:
            raise
        return found
    if like is not None:
        return _compared(checkpoint, open_checkpoint(place.elsewhere(like)))
    shell = _shell(checkpoint, trust, model_class, auto_class)
    if isinstance(shell, UsageError):
        return _alone(checkpoint, shell)
    if adapter is not None:
        return _adapted(shell, place.elsewhere(adapter))
    return _in_model(shell, checkpoint, None if key_map is None else KeyMap.of(key_map))


def _opened(
    place: Where, trust: CodeTrust, model_class: Callable[[Any], nn.Module] | None, auto_class: str | None
) -> Checkpoint:
    """Return the checkpoint; of several state dicts in a file that of the model, where only one is."""
    try:
        return open_checkpoint(place)
    except UnsupportedError as error:
        several = error
    if several.code != "E-STATES":
        raise several
    from shardload.loading.fitting_state import state_that_fits

    def shell(checkpoint: Checkpoint) -> Shell:
        found = _shell(checkpoint, trust, model_class, auto_class)
        if isinstance(found, UsageError):
            raise several  # no model says which one
        return found

    return open_checkpoint(state_that_fits(several, place, shell))


def _shell(
    checkpoint: Checkpoint,
    trust: CodeTrust,
    model_class: Callable[[Any], nn.Module] | None,
    auto_class: str | None,
) -> Shell | UsageError:
    """Return the model of the class that fits, or why no class is known to compare with."""
    made_of = _made_of(checkpoint, trust, model_class, auto_class)
    if isinstance(made_of, UsageError):
        return made_of
    config, resolved = made_of

    def build(of: remote_code.ResolvedClass) -> Shell:
        return build_shell(lambda: of.make(config))

    shell = build(resolved)
    if resolved.named is None:
        return shell
    from shardload.loading.fitting_class import fitting_class

    return fitting_class(resolved, shell, checkpoint, build)[1]


def _made_of(
    checkpoint: Checkpoint,
    trust: CodeTrust,
    model_class: Callable[[Any], nn.Module] | None,
    auto_class: str | None,
) -> tuple[Any, remote_code.ResolvedClass] | UsageError:
    """Return the config and the class, or why there is none: the repo's own is not trusted, or is not named."""
    config = checkpoint.config
    if model_class is None:
        config = config or read_config(checkpoint.source)
        given = Wording("pass {model_class} or {like} to compare", model_class=..., like=...)
        if not config:
            return UsageError("no config.json names a class", cure=given)
        if "auto_map" in config and not trust.trust_remote_code:
            trusted = Wording("pass {trust_remote_code} to run the repo's own code", trust_remote_code=True)
            return UsageError(
                "the class is the repo's own, and its code is not trusted", cure=Cures(given, trusted)
            )
    try:
        repo = checkpoint.source, config, trust
        loaded = remote_code.load_config(*repo, model_class=model_class)
        resolved = remote_code.resolve_class(*repo, auto_class=auto_class, model_class=model_class)
    except UsageError as unnamed:
        if model_class is not None or trust.trust_remote_code:
            raise
        return unnamed  # config.json names no class, or transformers is not installed
    return loaded.config, resolved


def _alone(checkpoint: Checkpoint, why: UsageError) -> Examination:
    """Judge a checkpoint without a model, by the signatures in its headers; a note says how there may be one."""
    case = Case.of({}, checkpoint.tensors, checkpoint.config, where=place_of_opened(checkpoint))
    found = checked([finding for finding in diagnose(case) if finding.declines], checkpoint)
    alone = Wording(
        "no model ({0}): only headers and index were judged; {1}", why.what, why.cure or "pass another config"
    )
    return _examination(checkpoint, found, notes=[alone, *checkpoint.warnings])


def _in_model(shell: Shell, checkpoint: Checkpoint, given: KeyMap | None) -> Examination:
    report = check(shell, checkpoint, given, _target(checkpoint))
    against = report.class_name
    notes = [*report.notes]
    if report.key_map is None:
        findings = report.findings
        if report.faults and not findings:
            findings = (_unexplained([fault.key for fault in report.faults], report.class_name),)
        result = _examination(checkpoint, findings, against=against, notes=notes)
        result.cure = report.cure
        if not report.faults and given is None:
            result.key_map = _of_the_class(shell, checkpoint, result.notes)
        return result
    after = check(shell, checkpoint, report.key_map, _target(checkpoint))
    left = [fault.key for fault in after.faults]
    bound = _bound(checkpoint, report.key_map, report.findings, set(shell.slots))
    result = _examination(checkpoint, report.findings, against=against, notes=notes)
    result.key_map, result.cured, result.cure = bound, not left, report.cure
    result.leniency = _leniency(after.cure) if left else {}
    return result


def _leniency(cure: str | None) -> dict[str, list[str]] | None:
    """Return the patterns that a cure allows; None for one that is more than that."""
    found = {name: value for name, value in keywords_of(cure).items() if name in _ALLOWING}
    same = joined(" and ", [keyword(name, patterns) for name, patterns in found.items()])
    return found if found and cure == same else None


def _target(checkpoint: Checkpoint) -> Target | None:
    """Return the target of a load without a dtype: what bitsandbytes packed it takes as it is stored."""
    may = checkpoint.may_be_packed
    packed = settled(None, checkpoint.config, checkpoint.tensors)[0] if may else None
    return None if packed is None else target_for(packed, "cpu", None)


def _of_the_class(shell: Shell, checkpoint: Checkpoint, notes: list[str]) -> KeyMap | None:
    """Return in literal rules what the model's classes make of a checkpoint; None where they leave it as it is."""
    names = (name for name, slot in shell.slots.items() if slot.is_stored)
    own = conversions(shell.tree.kinds, modules_of(shell.model), names, checkpoint.tensors)
    if not own:
        return None
    try:
        bound = KeyMap(own).bind(checkpoint.tensors)
    except NoInverseError as error:
        notes.append(f"no map says what the class makes of the checkpoint: {error.what} ({error.where})")
        return None
    return bound if bound.rules else None


def _compared(checkpoint: Checkpoint, other: Checkpoint) -> Examination:
    slots = {key: ref.shape for key, ref in other.tensors.items()}
    case = Case.of(slots, checkpoint.tensors, checkpoint.config, where=place_of_opened(checkpoint))
    findings = diagnose(case) if case.missing or case.unexpected or case.shape_mismatches else ()
    result = _examination(checkpoint, findings, against=other.label, notes=[*checkpoint.warnings])
    if not findings and (case.missing or case.unexpected or case.shape_mismatches):
        result.findings = (
            _unexplained([*case.missing, *case.unexpected, *case.shape_mismatches], other.label),
        )
    if any(finding.declines for finding in findings) or not findings or not case.solution.key_map.rules:
        return result
    table = case.solution.key_map.made(checkpoint.tensors)
    result.cured = {key: tensor.shape for key, tensor in table.items()} == slots
    unpaired = {"left over": table.keys() - slots.keys(), "missing": slots.keys() - table.keys()}
    for what, keys in unpaired.items():
        if keys:
            shown = ", ".join(collapse(sorted(keys))[:_SHOWN])
            result.notes.append(f"keys that are {what} with the map ({len(keys):,}): {shown}")
    result.key_map = _bound(checkpoint, case.solution.key_map, findings, set(slots))
    return result


def _bound(
    checkpoint: Checkpoint, key_map: KeyMap, findings: tuple[Finding, ...], wanted: set[str]
) -> KeyMap:
    mapped = key_map.map_headers(dict(checkpoint.tensors))
    unchanged = set(mapped.unchanged)
    return key_map.bind(
        dict(checkpoint.tensors),
        unresolved_source=[key for key in mapped.tensors if key not in wanted and key in unchanged],
        unresolved_target=[],
        confidence=min((finding.confidence for finding in findings if finding.key_map), default=1.0),
        unproven=tuple(dict.fromkeys(line for finding in findings for line in finding.unproven)),
    )


def _unexplained(keys: list[str], against: str) -> Finding:
    patterns = collapse(keys)
    return Finding(
        "E-KEYS",
        f"{len(keys)} keys do not fit {against}, and no rule explains why",
        explained=0,
        cure=Cures(
            Wording(
                "pass {allow_missing} or {allow_unexpected} for keys that may differ",
                allow_missing=...,
                allow_unexpected=...,
            ),
            "use the class that belongs to the checkpoint",
        ),
        evidence=tuple(patterns[:6]),
        confidence=0.0,
    )


def _examination(
    checkpoint: Checkpoint, findings: tuple[Finding, ...], *, against: str = "", notes: list[str]
) -> Examination:
    return Examination(
        where=checkpoint.label,
        findings=findings,
        against=against,
        keys=len(checkpoint.tensors),
        nbytes=checkpoint.nbytes,
        notes=notes,
    )


# Files that can't be opened ---------------------------------------------------------------------------------


def _unopened(error: ShardloadError, where: Where) -> Examination | None:
    """Return the finding for a checkpoint that can't be opened; None if there is nothing to examine."""
    if isinstance(error, NotFoundError):
        if error.code != "E-SHARDS":
            return None
        return _absent_shards(where) or Examination(str(where.name), (_finding_of(error, error.code),))
    return Examination(str(where.name), (_finding_of(error, error.code),))


def _finding_of(error: ShardloadError, code: str, cure: str = "fetch the file again") -> Finding:
    return Finding(
        code,
        error.what,
        explained=0,
        cure=error.cure or cure,
        evidence=(error.where,) if error.where else (),
        declines=True,
        unsafe=isinstance(error, CorruptError),
    )


def _absent_shards(where: Where) -> Examination | None:
    try:
        source, only = find_source(where)
        files: WeightFiles = find_weight_files(source, only=only, variant=where.variant)
    except ShardloadError:
        return None
    present = set(source.names())
    absent = [name for name in files.shards if name not in present]
    if not absent or not files.weight_map:
        return None
    lost = [key for key, shard in files.weight_map.items() if shard in absent]
    patterns = collapse(lost)
    finding = Finding(
        "E-SHARDS",
        f"{files.index} names {len(absent)} of {len(files.shards)} files that are missing: {', '.join(absent[:4])}",
        explained=len(lost),
        cure="fetch these files; the index is complete",
        evidence=tuple(patterns[:6]),
        declines=True,
    )
    return Examination(source.label, (finding,), keys=len(files.weight_map))


# Adapters -----------------------------------------------------------------------------------------------------


def _adapted(shell: Shell, adapter: Where) -> Examination:
    from shardload.adapters import open_adapter
    from shardload.adapters.match import judge
    from shardload.adapters.source import read_content

    against = type(shell.model).__name__
    result = Examination(str(adapter.name), against=against)
    try:
        file = open_adapter(adapter)
        tensors = file.checkpoint.tensors
        result.where, result.keys = file.label, len(tensors)
        result.nbytes = sum(ref.nbytes for ref in tensors.values())
        report, _ = judge(shell.model, file, read_content(file), "default", strict=True)
    except (MismatchError, UnsupportedError, CorruptError) as error:
        result.findings = tuple(_adapter_findings(error))
    else:
        result.notes = [*report.warnings]
    return result


def _adapter_findings(error: ShardloadError) -> list[Finding]:
    report = getattr(error, "report", None)
    kinds: dict[str, list[str]] = {}
    for fault in report.faults if report is not None else ():
        kinds.setdefault(fault.kind, []).append(str(fault))
    cure = error.cure or "use the base model that the adapter was trained on"
    if not kinds:
        code = "E-ADAPTER" if error.code == type(error).code else error.code
        return [_finding_of(error, code, cure)]
    return [
        Finding(
            f"E-LORA-{kind.replace(' ', '-').upper()}",
            f"{len(lines)} tensors of the adapter: {kind}",
            explained=len(lines),
            cure=cure,
            evidence=tuple(lines),
            unsafe=isinstance(error, CorruptError),
        )
        for kind, lines in kinds.items()
    ]
