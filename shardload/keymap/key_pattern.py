"""Patterns with exact ranges, as `keys.collapse` writes them: they name keys without listing each."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from math import prod
from typing import TYPE_CHECKING

from shardload.keys import split_key

if TYPE_CHECKING:
    from collections.abc import Iterable

_RANGES = re.compile(
    r"(?<![^.])(?:\{[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*\}|0|[1-9][0-9]{0,8})(?![^.])"
)


class KeyPattern:
    """One pattern: `layers.{0-2,5}.w` names four keys."""

    def __init__(self, text: str) -> None:
        self.text = text
        literal = "{}" in text  # the key itself holds braces; split_key leaves it as it is
        self.template = text if literal else _RANGES.sub("{}", text)
        self._runs = [] if literal else [_runs(part) for part in _RANGES.findall(text)]
        self.count = prod(sum(stop - start for start, stop in runs) for runs in self._runs)

    def names(self, indices: tuple[int, ...]) -> bool:
        """Whether the pattern names the key of its template that has these numbers."""
        return len(indices) == len(self._runs) and all(
            _within(runs, index) for runs, index in zip(self._runs, indices, strict=True)
        )


def unaccounted(patterns: Iterable[str], keys: Iterable[str]) -> list[str]:
    """Return what prevents the patterns from naming exactly these keys, each once.

    These are keys that no pattern or several patterns name, and patterns that name keys which are not there.
    """
    by_template: dict[str, list[KeyPattern]] = {}
    for text in patterns:
        pattern = KeyPattern(text)
        by_template.setdefault(pattern.template, []).append(pattern)
    met: Counter[str] = Counter()
    odd: list[str] = []
    for key in keys:
        template, indices = split_key(key)
        naming = [pattern for pattern in by_template.get(template, ()) if pattern.names(indices)]
        if len(naming) == 1:
            met[naming[0].text] += 1
        else:
            odd.append(key)
    texts = [pattern for group in by_template.values() for pattern in group]
    return [*odd, *(pattern.text for pattern in texts if met[pattern.text] != pattern.count)]


def _runs(part: str) -> list[tuple[int, int]]:
    runs = []
    for run in part.strip("{}").split(","):
        first, _, last = run.partition("-")
        runs.append((int(first), int(last or first) + 1))
    return sorted(runs)


def _within(runs: list[tuple[int, int]], index: int) -> bool:
    place = bisect_right(runs, (index, 1 << 62)) - 1
    return place >= 0 and runs[place][0] <= index < runs[place][1]
