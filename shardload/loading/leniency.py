"""Decides which faults a load allows, and who allows them: the caller or the class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

from shardload.errors import UsageError, keyword
from shardload.keymap import leaves, matches
from shardload.loading.fault import missing_fault
from shardload.loading.head import HEAD, Heads
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shardload.keymap import Derived
    from shardload.loading.fault import Fault
    from shardload.loading.plan import Plan
    from shardload.model.shell import Shell


Patterns: TypeAlias = "Sequence[str] | Literal['head']"


def set_aside(
    plan: Plan,
    shell: Shell,
    stored: Mapping[str, Derived],
    *,
    strict: bool = True,
    allow_missing: Patterns = (),
    allow_unexpected: Patterns = (),
) -> tuple[list[Fault], dict[str, list[Fault]]]:
    """Divide a plan's faults into those that stop the load and those that are allowed, by reason.

    Patterns are those of a key map's drop (a template, or an fnmatch pattern, for whole keys); "head", unless a key
    has that name, stands for those of a head. Raises UsageError for a pattern that matches no key or every key.
    """
    fillable = [name for name, slot in shell.slots.items() if slot.is_stored]
    # The parts of what was made plain while it is read are stored under names of their own.
    parts = (ref.name for made in stored.values() if not isinstance(made, TensorRef) for ref in leaves(made))
    faulty = [fault.key for fault in plan.faults]
    heads = Heads(shell.model, fillable, stored)
    patterns = {
        "missing": _Allowed("allow_missing", allow_missing, {*fillable, *faulty}, heads),
        "unexpected": _Allowed("allow_unexpected", allow_unexpected, {*stored, *parts, *faulty}, heads),
    }
    ignored = ignored_by(shell)
    faults: list[Fault] = []
    allowed: dict[str, list[Fault]] = {}
    forgiven = [missing_fault(shell.slots[name]) for name in plan.forgiven if name in shell.slots]
    if forgiven:
        allowed["a load_state_dict hook of the class"] = forgiven
    for fault in plan.faults:
        if fault.kind in patterns and patterns[fault.kind].covers(fault):
            reason = f"allow_{fault.kind}"
        elif ignored(fault.kind, fault.key):
            reason = f"the class's _keys_to_ignore_on_load_{fault.kind}"
        elif not strict and fault.kind in patterns:
            reason = "strict=False"
        else:
            faults.append(fault)
            continue
        allowed.setdefault(reason, []).append(fault)
    return faults, allowed


class _Allowed:
    """The keys that a caller allows to be missing, or unexpected."""

    def __init__(self, argument: str, patterns: Patterns, keys: set[str], heads: Heads) -> None:
        self._heads: Heads | None = None
        if patterns == HEAD:
            patterns = [HEAD]
        if (
            not isinstance(patterns, str)
            and isinstance(patterns, Iterable)
            and HEAD in patterns
            and HEAD not in keys
        ):
            heads.require(argument)
            self._heads = heads
            patterns = [each for each in patterns if each != HEAD]
        _check_patterns(argument, patterns, keys)
        self._patterns = patterns

    def covers(self, fault: Fault) -> bool:
        """Return whether the fault is allowed."""
        names = {fault.key, fault.stored_key or fault.key}
        return any(matches(pattern, name) for name in names for pattern in self._patterns) or (
            self._heads is not None and self._heads.have(fault)
        )


def _check_patterns(argument: str, patterns: Patterns, keys: set[str]) -> None:
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise UsageError(
            f"{argument} takes a list of patterns",
            where=repr(patterns),
            cure=keyword(argument, [patterns]) if isinstance(patterns, str) else None,
        )
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"{argument} takes a list of texts", where=repr(patterns))
    for pattern in patterns:
        matched = sum(matches(pattern, key) for key in keys)
        if matched == 0:
            raise UsageError(
                f"{argument}: {pattern!r} matches no key",
                cure="patterns match whole keys: layers.{}.bias as a key map does, or *.bias as fnmatch does",
            )
        if matched == len(keys) and len(keys) > 1:
            raise UsageError(
                f"{argument}: {pattern!r} matches every key",
                cure="name only the keys that may differ: with this pattern a load of nothing would be allowed",
            )


def ignored_by(shell: Shell) -> Callable[[str, str], bool]:
    """Return whether the class itself lets a key be missing or unexpected, as a function of kind and key."""
    ignored = {
        kind: _ignored_by_class(shell, f"_keys_to_ignore_on_load_{kind}")
        for kind in ("missing", "unexpected")
    }
    return lambda kind, key: any(pattern.search(key) for pattern in ignored.get(kind, ()))


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
