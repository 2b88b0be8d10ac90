"""All rules, by the name that a map's file gives them."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError
from shardload.keymap.alias import Alias
from shardload.keymap.drop import Drop
from shardload.keymap.rename import Rename
from shardload.keymap.rows import PadRows, SliceRows
from shardload.keymap.split import Cat, Split
from shardload.keymap.stack import Stack, Unstack
from shardload.keymap.transpose import Transpose

if TYPE_CHECKING:
    from shardload.keymap.rule import Rule

RULES: dict[str, Any] = {
    kind.op: kind for kind in (Rename, Drop, Alias, Split, Cat, Stack, Unstack, Transpose, SliceRows, PadRows)
}


def rule_of(entry: Any) -> Rule:
    """Return the rule that JSON data describe. Raises UsageError for an unknown rule or field and for wrong values."""
    if not isinstance(entry, dict) or not isinstance(entry.get("op"), str):
        raise UsageError('a rule of a key map is an object with an "op"', where=repr(entry)[:200])
    kind = RULES.get(entry["op"])
    if kind is None:
        raise UsageError(
            f"key map rule {entry['op'][:80]!r} is not known", cure=f"known are {', '.join(RULES)}"
        )
    known = {item.name: item.default is MISSING for item in fields(kind)}
    given = entry.keys() - {"op"}
    odd = [repr(name)[:80] for name in sorted(given - known.keys())]
    lacking = [name for name, needed in known.items() if needed and name not in given]
    if odd or lacking:
        problem = f"has no {', '.join(odd[:5])}" if odd else f"lacks {', '.join(lacking)}"
        raise UsageError(f"a {kind.op} of a key map {problem}", where=repr(entry)[:200])
    rule: Rule = kind(**{name: entry[name] for name in given})
    return rule
