"""Decides which faults a load allows, and who allows them: the caller or the class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from shardload.errors import UsageError
from shardload.loading.fault import missing_fault

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.loading.fault import Fault
    from shardload.loading.plan import Plan
    from shardload.model.shell import Shell


def set_aside(
    plan: Plan,
    shell: Shell,
    stored: Iterable[str],
    *,
    strict: bool = True,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> tuple[list[Fault], dict[str, list[Fault]]]:
    """Divide a plan's faults into those that stop the load and those that are allowed, by reason.

    Patterns are fnmatch patterns on whole keys. Raises UsageError for a pattern that matches no key or every key.
    """
    fillable = (name for name, slot in shell.slots.items() if slot.is_stored)
    _check_patterns("allow_missing", allow_missing, {*fillable, *(f.key for f in plan.faults)})
    _check_patterns("allow_unexpected", allow_unexpected, {*stored, *(f.key for f in plan.faults)})
    ignore = {
        "missing": _ignored_by_class(shell, "_keys_to_ignore_on_load_missing"),
        "unexpected": _ignored_by_class(shell, "_keys_to_ignore_on_load_unexpected"),
    }
    patterns: Mapping[str, Sequence[str]] = {"missing": allow_missing, "unexpected": allow_unexpected}
    faults: list[Fault] = []
    allowed: dict[str, list[Fault]] = {}
    forgiven = [missing_fault(shell.slots[name]) for name in plan.forgiven if name in shell.slots]
    if forgiven:
        allowed["a load_state_dict hook of the class"] = forgiven
    for fault in plan.faults:
        names = {fault.key, fault.stored_key or fault.key}
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns.get(fault.kind, ())):
            reason = f"allow_{fault.kind}"
        elif any(pattern.search(fault.key) for pattern in ignore.get(fault.kind, ())):
            reason = f"the class's _keys_to_ignore_on_load_{fault.kind}"
        elif not strict and fault.kind in patterns:
            reason = "strict=False"
        else:
            faults.append(fault)
            continue
        allowed.setdefault(reason, []).append(fault)
    return faults, allowed


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
                cure="name only the keys that may differ: with this pattern a load of nothing would be allowed",
            )


def _ignored_by_class(shell: Shell, attribute: str) -> list[re.Pattern[str]]:
    declared = getattr(shell.model, attribute, None) or ()
    patterns = [declared] if isinstance(declared, str) else declared  # a text is one pattern
    try:
        return [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise UsageError(
            f"{attribute} of {type(shell.model).__name__} holds a pattern that is no regular expression: {error}",
            where=repr(declared),
        ) from error
