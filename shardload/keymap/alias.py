"""alias: a second name for one stored tensor, as tied weights need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shardload.errors import UsageError
from shardload.keymap.drop import Drop
from shardload.keymap.key_template import key_template, same_placeholders
from shardload.keymap.rule import RuleBase, Step

if TYPE_CHECKING:
    from shardload.keymap.rule import Table


@dataclass(frozen=True)
class Alias(RuleBase):
    """Give keys that match a template a second name; they keep their own."""

    op: ClassVar[str] = "alias"
    source: str
    target: str

    def __post_init__(self) -> None:
        for text in (self.source, self.target):
            key_template(text).require()
        same_placeholders(self.source, self.target)
        if {"*", "?", "["} & set(self.target):
            raise UsageError("an alias's target has no *, ? or [", where=repr(self.target))

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of its source."""
        return (self.source,)

    def transform(self, table: Table) -> Step:
        """Return the table with the second names added."""
        source, target = key_template(self.source), key_template(self.target)
        made = {
            name: [(target.fill(values) or name, tensor)]
            for name, tensor in table.items()
            if (values := source.match(name)) is not None
        }
        return Step(table, (), made, list(made))

    def invert(self) -> Drop:
        """Return the rule that drops the second name."""
        return Drop(self.target)
