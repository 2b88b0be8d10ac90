"""Patterns: rank_pattern and alpha_pattern of a config, matched as PEFT matches them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PLAIN = re.compile(r"[\w.]+")
_QUANTIFIER = re.compile(r"(?<![\\(])[*+?{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MOST_QUANTIFIERS = 3
_LONGEST = 1000


def is_risky(key: str) -> bool:
    """Return whether a pattern, which is untrusted, repeats so much that matching it could never end."""
    if _PLAIN.fullmatch(key):
        return False
    if len(key) > _LONGEST or _REPEATED_GROUP.search(key):
        return True
    return len(_QUANTIFIER.findall(key)) > _MOST_QUANTIFIERS


def expression(key: str) -> str:
    """Return the regular expression that PEFT matches against a whole module path."""
    return rf"(.*\.)?({key})$"


@dataclass(frozen=True)
class Patterns:
    """Values by module name pattern: the first pattern in the config's order that matches a path applies to it.

    A pattern matches the whole path or its end after a dot; a risky one never matches. Plain names are looked up by
    the ends of the path, so that the time of thousands of patterns for thousands of layers is not their product.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    _keys: tuple[str, ...] = field(init=False, default=(), repr=False)
    _plain: dict[str, int] = field(init=False, default_factory=dict, repr=False)
    _regex: list[tuple[int, re.Pattern[str]]] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_keys", tuple(self.values))
        for order, key in enumerate(self._keys):
            if _PLAIN.fullmatch(key):
                self._plain[key] = order
            elif not is_risky(key):
                self._regex.append((order, re.compile(expression(key))))

    def key_for(self, path: str) -> str | None:
        """Return the pattern that applies to the module at `path`, or None."""
        if not self._keys:
            return None
        orders = [self._plain[end] for end in _ends(path) if end in self._plain]
        first = min(orders, default=len(self._keys))
        for order, regex in self._regex:
            if order < first and regex.match(path):
                first = order
                break
        return self._keys[first] if first < len(self._keys) else None

    def value_for(self, path: str) -> float | None:
        """Return the value of the pattern that applies to the module at `path`, or None."""
        key = self.key_for(path)
        return None if key is None else self.values[key]

    def idle(self, paths: Iterable[str]) -> list[str]:
        """Return the patterns that apply to none of these paths."""
        used = {self.key_for(path) for path in paths}
        return [key for key in self.values if key not in used]


def _ends(path: str) -> list[str]:
    segments = path.split(".")
    return [".".join(segments[start:]) for start in range(len(segments))]
