"""The names that transformers gives to a checkpoint's tensors, found once for each template of names.

The transforms themselves are the library's, and so is every decision. A model of 128 experts has thousands of names
that differ in nothing but their numbers: where no pattern looks at a number, one of them is renamed for all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NUMBERS = re.compile(r"(?<![^.])\d+(?![^.])")  # whole segments
# Digits of a pattern that could meet a whole number: not `w1`, `\d`, `\1` or `[0-9]`. And `\d` without a `+` counts.
_LITERAL = re.compile(r"(?<![A-Za-z_\\\d])\d|\\d(?!\+)")
_FIRST, _MOST = 7_000_001, 9  # numbers of the name that stands for the others


@dataclass(frozen=True)
class NewName:
    """A tensor's name after the transforms, and the pattern of the converter that takes it, None for a rename."""

    name: str
    pattern: str | None


class Renaming:
    """Renames by a list of transforms of transformers, in their order."""

    def __init__(self, transforms: Sequence[Any], rename: Callable[[str], tuple[str, str | None]]) -> None:
        self._rename = rename
        self._known: dict[str, tuple[list[str | int], str | None]] = {}
        self._by_template = all(map(_ignores_numbers, transforms))

    def __call__(self, name: str) -> NewName:
        """Return the new name."""
        numbers = _NUMBERS.findall(name) if self._by_template else ()
        if not 0 < len(numbers) < _MOST:
            return NewName(*self._rename(name))
        template = _NUMBERS.sub("{}", name)
        if template not in self._known:
            self._known[template] = self._of_template(template, len(numbers))
        pieces, pattern = self._known[template]
        return NewName(
            "".join([piece if isinstance(piece, str) else numbers[piece] for piece in pieces]), pattern
        )

    def _of_template(self, template: str, count: int) -> tuple[list[str | int], str | None]:
        stand_ins = [str(_FIRST + place) for place in range(count)]
        renamed, pattern = self._rename(template.replace("{}", "%s") % tuple(stand_ins))
        pieces = re.split(f"({'|'.join(stand_ins)})", renamed)
        return [stand_ins.index(piece) if piece in stand_ins else piece for piece in pieces], pattern


def _ignores_numbers(transform: Any) -> bool:
    """Whether a transform does the same to names that differ in whole numbers alone."""
    if type(transform).__name__ not in {"WeightRenaming", "WeightConverter", "PrefixChange"}:
        return False  # these count, or wait for another name
    texts = [*transform.source_patterns, transform.scope_prefix or ""]
    return not any(_LITERAL.search(text.replace("[0-9]", "")) for text in texts)
