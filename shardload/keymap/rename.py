"""rename: another name for the same tensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from shardload.errors import NoInverseError, UsageError
from shardload.keymap.key_template import key_template, same_placeholders
from shardload.keymap.rule import RuleBase, Step

if TYPE_CHECKING:
    from shardload.keymap.key_template import KeyTemplate
    from shardload.keymap.rule import Table


@dataclass(frozen=True)
class Rename(RuleBase):
    """Rename keys that match a template. `{}` is one number, `{...}` any run of segments (at most once).

    A target may add to a number: `layers.{+1}.w`. With `everywhere`, source and target are runs of whole segments
    without placeholders, replaced wherever they stand in a key; an empty target removes them.
    """

    op: ClassVar[str] = "rename"
    source: str
    target: str
    everywhere: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.everywhere, bool):
            raise UsageError("everywhere is true or false", where=repr(self.everywhere)[:200])
        if self.everywhere:
            for text in (self.source, self.target) if self.target != "" else (self.source,):
                if not key_template(text).is_literal or not all(text.split(".")):
                    raise UsageError("everywhere takes whole segments without placeholders", where=repr(text))
            return
        key_template(self.source).require()
        key_template(self.target).require(offsets=True)
        same_placeholders(self.source, self.target)

    @property
    def only_key(self) -> str | None:
        """The one key that this may rename; None for several."""
        return None if self.everywhere or "{" in self.source else self.source

    def ends(self) -> tuple[str, str]:
        """Return what every key that this renames begins and ends with."""
        return ("", "") if self.everywhere else key_template(self.source).ends

    def apply(self, key: str) -> str | None:
        """Return the new key, or the same key where the template does not match."""
        if self.everywhere:
            return self._replace_segments(key)
        source, target = self._templates
        values = source.match(key)
        if values is None:
            return key
        new = target.fill(values)
        return key if new is None else new

    @cached_property
    def _templates(self) -> tuple[KeyTemplate, KeyTemplate]:
        return key_template(self.source), key_template(self.target)

    def _replace_segments(self, key: str) -> str:
        if self.source not in key:
            return key
        segments, wanted = key.split("."), self.source.split(".")
        new = self.target.split(".") if self.target else []
        result: list[str] = []
        at = 0
        while at < len(segments):
            found = segments[at : at + len(wanted)] == wanted
            result += new if found else segments[at : at + 1]
            at += len(wanted) if found else 1
        return ".".join(result) or key

    def transform(self, table: Table) -> Step:
        """Return the table under its new names."""
        new = {name: self.apply(name) or name for name in table}
        claimed = [name for name, other in new.items() if name != other]
        return Step(table, claimed, {name: [(new[name], table[name])] for name in claimed}, claimed)

    def invert(self) -> Rename:
        """Return the rename that undoes this one. Raises NoInverseError where it removes segments everywhere."""
        if self.everywhere and not self.target:
            raise NoInverseError(
                "a rename that removes segments everywhere has no inverse: the names do not show where they stood",
                where=f"rename {self.source!r} everywhere",
            )
        if self.everywhere:
            return Rename(self.target, self.source, everywhere=True)
        # source h.{}, target layers.{+1}: back from layers.{} to h.{-1}.
        target, source = key_template(self.target), key_template(self.source)
        return Rename(target.plain(), _with_offsets(source.text, target.negated()))


def _with_offsets(source: str, negated: str) -> str:
    """Return the text of `source` with the placeholders of `negated`."""
    from_other = iter(key_template(negated).placeholders)
    text = key_template(source)
    result = text.text
    at = 0
    for placeholder in text.placeholders:
        found = result.index(placeholder, at)
        new = next(from_other)
        result = result[:found] + new + result[found + len(placeholder) :]
        at = found + len(new)
    return result
