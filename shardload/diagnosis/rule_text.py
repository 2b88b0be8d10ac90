"""A rule of a key map as one line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.keymap import Alias, Cat, Drop, Rename, Split, Stack, Unstack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.keymap import Names, Rule

_LONGEST = 200  # characters of a mapping that is printed to be typed


def as_names(rules: Sequence[Rule], longest: int = _LONGEST) -> Names | None:
    """Return rules as the mapping that `key_map` takes; None where it can't say them, or is too long to type."""
    names: dict[str, str | list[str] | None] = {}
    for rule in rules:
        target: str | list[str] | None
        if isinstance(rule, Rename) and not rule.everywhere:
            source, target = rule.source, rule.target
        elif isinstance(rule, Alias):
            source, target = rule.source, [rule.source, rule.target]
        elif isinstance(rule, Drop):
            source, target = rule.pattern, None
        else:
            return None
        # A command has no words for a name with a sign = in it, or a comma.
        if source in names or {"=", ","} & set(f"{source}{''.join(target or ())}"):
            return None
        names[source] = target
    return names if len(repr(names)) <= longest else None


def rule_text(rule: Rule) -> str:
    """Return a rule as a line of text: "rename a -> b", "split a -> b [4096], c [256]"."""
    text = f"{rule.op} "
    if isinstance(rule, Rename):
        text += f"{rule.source} -> {rule.target or 'nothing'}{' at any place' if rule.everywhere else ''}"
    elif isinstance(rule, Split):
        sizes = rule.sizes or ("equal",) * len(rule.targets)
        parts = ", ".join(f"{name} [{size}]" for name, size in zip(rule.targets, sizes, strict=True))
        text += f"{rule.source} -> {parts}{_along(rule.dim)}"
    elif isinstance(rule, Cat):
        text += f"{', '.join(rule.sources)} -> {rule.target}{_along(rule.dim)}"
    elif isinstance(rule, (Stack, Unstack)):
        text += f"{rule.source} -> {rule.target}"
    elif isinstance(rule, Alias):
        text += f"{rule.source} also as {rule.target}"
    elif isinstance(rule, Drop):
        text += rule.pattern
    else:
        text += " ".join(f"{value}" for name, value in rule.to_dict().items() if name != "op")
    return text


def _along(dim: int) -> str:
    return f" along dimension {dim}" if dim else ""
