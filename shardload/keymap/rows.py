"""slice_rows and pad_rows: fewer or more rows than are stored, for a resized vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from shardload.errors import Cures, NoInverseError, UsageError, Wording
from shardload.keymap.derived import Derived, Filled, join, narrowed
from shardload.keymap.key_template import key_template
from shardload.keymap.rule import RuleBase, Step, only, shown, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardload.keymap.rule import Table


@dataclass(frozen=True)
class SliceRows(RuleBase):
    """Keep the rows from `start` up to `stop` (entries of dimension 0); the other rows are not loaded."""

    op: ClassVar[str] = "slice_rows"
    source: str
    stop: int
    start: int = 0

    def __post_init__(self) -> None:
        key_template(self.source).require()
        whole_number("start", self.start)
        whole_number("stop", self.stop, least=self.start + 1)

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of its source."""
        return (self.source,)

    def transform(self, table: Table) -> Step:
        """Return the table with these rows only."""
        return _transform(self, table, self.stop, 1 << 62, self._rows)

    def _rows(self, tensor: Derived) -> Any:
        return narrowed(tensor, 0, self.start, self.stop - self.start)

    def invert(self) -> Any:
        """Raise NoInverseError: the other rows can't be written back."""
        raise NoInverseError(
            "a slice_rows has no inverse: the other rows are not kept", where=f"slice_rows {self.source!r}"
        )


@dataclass(frozen=True)
class PadRows(RuleBase):
    """Add rows (entries of dimension 0) that hold `value` until there are `rows`; `of` says how many are stored."""

    op: ClassVar[str] = "pad_rows"
    source: str
    rows: int
    value: float = 0
    of: int | None = None

    def __post_init__(self) -> None:
        key_template(self.source).require()
        whole_number("rows", self.rows, least=1)
        if type(self.value) not in (int, float) or not math.isfinite(self.value) or abs(self.value) > 1e38:
            raise UsageError("pad_rows takes one finite number as value", where=repr(self.value)[:200])
        if self.of is not None:
            whole_number("of", self.of, least=1, most=self.rows)

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of its source."""
        return (self.source,)

    def transform(self, table: Table) -> Step:
        """Return the table with the rows added."""
        least, most = (0, self.rows) if self.of is None else (self.of, self.of)
        return _transform(self, table, least, most, self._rows)

    def _rows(self, tensor: Derived) -> Any:
        shape = (self.rows - tensor.shape[0], *tensor.shape[1:])
        return join([tensor, Filled(tensor.dtype, shape, self.value)], 0)

    def bound(self, table: Table) -> PadRows:
        """Return the rule with `of` filled in, where all keys have the same number of rows."""
        source = key_template(self.source)
        of = only(
            tensor.shape[0]
            for name, tensor in table.items()
            if source.match(name) is not None and tensor.shape
        )
        return self if self.of is not None or not of or of > self.rows else replace(self, of=of)

    def invert(self) -> SliceRows:
        """Return the rule that keeps the stored rows. Raises NoInverseError where `of` is not known."""
        if self.of is None:
            raise NoInverseError(
                "a pad_rows that does not say how many rows are stored has no inverse",
                where=f"pad_rows {self.source!r}",
                cure=Cures(Wording("give {of}", of=...), "let KeyMap.bind(checkpoint.tensors) fill it in"),
            )
        return SliceRows(self.source, self.of)


def _transform(
    rule: SliceRows | PadRows, table: Table, least: int, most: int, change: Callable[[Derived], Any]
) -> Step:
    source = key_template(rule.source)
    made: dict[str, list[tuple[str, Derived]]] = {}
    faults: list[str] = []
    for name, tensor in table.items():
        if source.match(name) is None:
            continue
        if not tensor.shape or not least <= tensor.shape[0] <= most:
            wanted = f"{least:,} rows" if least == most else f"{least:,} rows or more"
            wanted = f"at most {most:,} rows" if not least else wanted
            faults.append(f"{name} {shown(tensor.shape)} needs {wanted}")
        elif isinstance(rule, PadRows) and not _holds(tensor.dtype, rule.value):
            faults.append(f"{name} is stored as {tensor.dtype}, which has no {rule.value!r}")
        else:
            made[name] = [(name, cast("Derived", change(tensor)))]
    rule._refuse(faults)
    return Step(table, made, made, list(made))


def _holds(code: str, value: float) -> bool:
    """Whether a dtype surely holds a value: any in wide floats, small whole numbers in integers, 0 in the rest."""
    if code in {"F32", "F64", "BF16"}:
        return True
    if code == "F16":
        return abs(value) <= 65_504
    if code[0] in "IU":
        return isinstance(value, int) and (0 if code[0] == "U" else -128) <= value <= 127
    return value == 0
