"""Templates of keys: `layers.{}.mlp.{...}` stands for every key of that form."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST = 16_384  # characters of a template
MOST_PLACEHOLDERS = 16

_PLACEHOLDER = re.compile(r"\{(?:\.\.\.|n|[+-][0-9]{1,6})?\}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


class KeyTemplate:
    """A parsed template.

    `{}` is one number, `{...}` any run of segments (at most once), `{n}` the number that a stack counts, and `{+1}` (or
    another offset, in the target of a rename only) the number plus that. A template matches a key in at most one way.
    Matching takes time linear in the key's length for each place where `{...}` could end, because two placeholders
    have at least one character between them that is no digit. Raises UsageError for any other text.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or len(text) > LONGEST:
            raise UsageError(
                f"a template is a text of at most {LONGEST:,} characters", where=repr(text)[:200]
            )
        self.text = text
        self.placeholders: tuple[str, ...] = tuple(_PLACEHOLDER.findall(text))
        self._literals = _PLACEHOLDER.split(text)
        self._check()
        self._prefix, self._suffix = self._literals[0], self._literals[-1]
        self._pattern = re.compile(self._regex(), re.DOTALL) if self.placeholders else None
        self._is_one_run = self.placeholders == ("{...}",)
        self._offsets = [int(p[1:-1]) if p[1] in "+-" else None for p in self.placeholders]

    def _check(self) -> None:
        if len(self.placeholders) > MOST_PLACEHOLDERS:
            raise UsageError(
                f"a template holds at most {MOST_PLACEHOLDERS} placeholders", where=repr(self.text)[:200]
            )
        for placeholder in ("{...}", "{n}"):
            if self.placeholders.count(placeholder) > 1:
                raise UsageError(f"a template holds at most one {placeholder}", where=repr(self.text)[:200])
        if any(literal.isdigit() or not literal for literal in self._literals[1:-1]):
            raise UsageError(
                "two placeholders of a template need more than digits between them",
                where=repr(self.text)[:200],
            )

    def _regex(self) -> str:
        groups = ["(.+)" if p == "{...}" else "([0-9]+)" for p in self.placeholders]
        literals = [re.escape(literal) for literal in self._literals]
        return literals[0] + "".join(
            group + literal for group, literal in zip(groups, literals[1:], strict=True)
        )

    @property
    def is_literal(self) -> bool:
        """Whether the template has no placeholder and so stands for one key."""
        return self._pattern is None

    @property
    def ends(self) -> tuple[str, str]:
        """What every key that the template matches begins and ends with."""
        return self._prefix, self._suffix

    @property
    def kinds(self) -> tuple[str, ...]:
        """The placeholders in order, offsets as `{}`: both sides of a rule must have the same."""
        return tuple("{}" if p[1] in "+-" else p for p in self.placeholders)

    def match(self, key: str) -> tuple[str, ...] | None:
        """Return the texts that the placeholders stand for in a key, or None where the key does not match."""
        if self._pattern is None:
            return () if key == self.text else None
        if not (key.startswith(self._prefix) and key.endswith(self._suffix)):
            return None
        if self._is_one_run:
            run = key[len(self._prefix) : len(key) - len(self._suffix)]
            return (run,) if run else None
        found = self._pattern.fullmatch(key)
        return found.groups() if found else None

    def fill(self, values: Sequence[str]) -> str | None:
        """Return the key with `values` in place of the placeholders; None where an offset gives a number below zero."""
        text = self._literals[0]
        for value, offset, literal in zip(values, self._offsets, self._literals[1:], strict=True):
            if offset is None:
                text += value + literal
            elif not _NUMBER.fullmatch(value) or int(value) + offset < 0:
                return None  # 007 plus one would be 8, and its inverse 7
            else:
                text += f"{int(value) + offset}{literal}"
        return text

    def negated(self) -> str:
        """Return the text with the sign of every offset changed."""
        flip = {"+": "-", "-": "+"}
        return _PLACEHOLDER.sub(
            lambda found: "{" + flip[found[0][1]] + found[0][2:] if found[0][1] in flip else found[0],
            self.text,
        )

    def plain(self) -> str:
        """Return the text with `{}` in place of every offset."""
        return _PLACEHOLDER.sub(lambda found: "{}" if found[0][1] in "+-" else found[0], self.text)

    def require(self, *, counter: bool = False, offsets: bool = False) -> None:
        """Raise UsageError where placeholders stand that this side of a rule does not take.

        With `counter` the template needs one `{n}`, else it takes none; offsets are taken only with `offsets`.
        """
        if counter != ("{n}" in self.placeholders):
            problem = "needs {n} for the number that is counted" if counter else "takes no {n}"
            raise UsageError(f"this template {problem}", where=repr(self.text)[:200])
        if not offsets and any(offset is not None for offset in self._offsets):
            raise UsageError(
                "an offset such as {+1} stands in the target of a rename only", where=repr(self.text)[:200]
            )


@lru_cache(maxsize=20_000)
def key_template(text: str) -> KeyTemplate:
    """Return the parsed template of a text."""
    return KeyTemplate(text)


def same_placeholders(first: str, *others: str, ignoring: str = "") -> None:
    """Raise UsageError unless all templates have the same placeholders in the same order, apart from `ignoring`."""
    wanted = [kind for kind in key_template(first).kinds if kind != ignoring]
    for other in others:
        if [kind for kind in key_template(other).kinds if kind != ignoring] != wanted:
            raise UsageError(
                "both sides of a rule need the same placeholders in the same order",
                where=f"{first[:200]!r} -> {other[:200]!r}",
                cure="use {} for a layer number and {...} for the rest of a key on both sides",
            )
