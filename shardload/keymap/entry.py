"""Entry: one entry of a mapping of names, `{"old": "new"}`, as rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError
from shardload.keymap.alias import Alias
from shardload.keymap.drop import Drop
from shardload.keymap.rename import Rename

if TYPE_CHECKING:
    from shardload.keymap.rule import Rule


def entry_rules(old: Any, new: Any) -> list[Rule]:
    """Return the rules of one entry of a mapping of names."""
    names = [new] if isinstance(new, str) or not isinstance(new, Sequence) else list(new)
    if not isinstance(old, str) or not (new is None or (names and all(isinstance(n, str) for n in names))):
        raise UsageError(
            "a key map maps texts to texts, to lists of them, or to None for a drop",
            where=f"{old!r}: {new!r}",
        )
    if new is None:
        return [Drop(old)]
    first, *others = names
    own: list[Rule] = [Rename(old, first)] if first != old or not others else []
    return [*own, *(Alias(first, other) for other in others)]
