"""drop: leave out stored tensors that the model has no place for."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from shardload.errors import NoInverseError, UsageError
from shardload.keymap.key_template import LONGEST, key_template
from shardload.keymap.rule import RuleBase, Step

if TYPE_CHECKING:
    from shardload.keymap.rule import Rule, Table


def matches(pattern: str, key: str) -> bool:
    """Whether a template, or an fnmatch pattern where the text holds no placeholder, stands for a whole key."""
    return Drop(pattern).apply(key) is None


@dataclass(frozen=True)
class Drop(RuleBase):
    """Leave out keys that match a template, or an fnmatch pattern where the text holds no placeholder."""

    op: ClassVar[str] = "drop"
    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or len(self.pattern) > LONGEST:
            raise UsageError(
                f"a pattern is a text of at most {LONGEST:,} characters", where=repr(self.pattern)[:200]
            )
        if self._is_template:
            key_template(self.pattern).require()
            if {"*", "?", "["} & set(self.pattern):
                raise UsageError(
                    "a drop takes a template or an fnmatch pattern, not both in one", where=repr(self.pattern)
                )

    @property
    def _is_template(self) -> bool:
        # "{...}" alone would drop everything, so it stands for the key of that name.
        template = key_template(self.pattern)
        return bool(template.placeholders) and "".join(template.placeholders) != self.pattern

    @property
    def only_key(self) -> str | None:
        """The one key that this may drop; None for several."""
        return None if self._is_template or {"*", "?", "["} & set(self.pattern) else self.pattern

    def ends(self) -> tuple[str, str]:
        """Return what every key that this drops begins and ends with."""
        return key_template(self.pattern).ends if self._is_template else ("", "")

    def apply(self, key: str) -> str | None:
        """Return None for a key that is dropped, else the key. A key that equals the pattern is dropped too."""
        if key == self.pattern:
            return None
        if self._is_template:
            return key if key_template(self.pattern).match(key) is None else None
        return None if fnmatchcase(key, self.pattern) else key

    def transform(self, table: Table) -> Step:
        """Return the table without the dropped tensors."""
        claimed = [name for name in table if self.apply(name) is None]
        return Step(table, claimed, {}, claimed)

    def invert(self) -> Rule:
        """Raise NoInverseError: dropped tensors can't be written back."""
        raise NoInverseError("a drop has no inverse", where=f"drop {self.pattern!r}")
