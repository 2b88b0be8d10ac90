"""EditedTable: a table that rules change one after the other; each sees only the names that it may match."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardload.keymap.rule import rebuilt, whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardload.keymap.rule import Step, Table

_PLACEHOLDER = re.compile(r"\{n?\}")
_DIGITS = re.compile(r"[0-9]+")


class EditedTable:
    """The tensors of a table in their order, found by the form of their names.

    A map may have a rule for every name; looking at all names for each rule would take the square of their number.
    """

    def __init__(self, table: Table) -> None:
        self._table = dict(table)
        # A new tensor stands where the one stood that it is made of: (3, 1) comes after (3,) and before (4,).
        self._places: dict[str, tuple[int, ...]] = {}
        self._forms: dict[str, set[str]] = {}
        self._form_of: dict[str, str] = {}
        for place, name in enumerate(table):
            self._file(name, (place,))

    @property
    def table(self) -> Table:
        """All tensors."""
        return self._of(self._table)

    def part(self, templates: Iterable[str] | None) -> Table:
        """Return the tensors whose names some templates may match; all, where they may match any name."""
        if templates is None or any("{...}" in template for template in templates):
            return self.table
        forms = {_form(_PLACEHOLDER.sub("0", template)) for template in templates}
        return self._of({name for form in forms for name in self._forms.get(form, ())})

    def take(self, step: Step) -> None:
        """Make the changes of a rule. Raises UsageError where two tensors would have one name."""
        gone = set(step.gone)
        new = [name for made in step.made.values() for name, _ in made]
        if len(set(new)) < len(new) or any(name in self._table and name not in gone for name in new):
            rebuilt(self.table, gone, step.made)  # says which
        places = {name: self._places[name] for name in (*gone, *step.made)}
        for name in gone:
            self._forms[self._form_of[name]].discard(name)
            del self._table[name], self._places[name]
        for name, made in step.made.items():
            stays = len(made) == 1 and name in gone
            for at, (other, tensor) in enumerate(made):
                self._table[other] = whole(tensor)
                self._file(other, places[name] if stays else (*places[name], at))

    def _file(self, name: str, place: tuple[int, ...]) -> None:
        self._places[name] = place
        form = self._form_of.get(name) or self._form_of.setdefault(name, _form(name))
        self._forms.setdefault(form, set()).add(name)

    def _of(self, names: Iterable[str]) -> Table:
        return {name: self._table[name] for name in sorted(names, key=self._places.__getitem__)}


def _form(name: str) -> str:
    return _DIGITS.sub("0", name)
