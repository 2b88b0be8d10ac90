"""The protocol of a rule. A new rule is one new file beside this one, and a line in `rules.py`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from shardload.errors import UsageError
from shardload.keymap.derived import Filled, Joined
from shardload.keymap.key_template import key_template

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from shardload.keymap.derived import Derived

Table = dict[str, "Derived"]
"""Tensors by the names that they have so far."""

LARGEST = 1 << 48  # of a size, a count or a number of rows in a rule
MOST_TEMPLATES = 4_096  # of one rule


@dataclass(frozen=True)
class Step:
    """What a rule does to a table: the names that go, the tensors that it files under names, and all that it took."""

    before: Table
    gone: Collection[str]
    made: Mapping[str, Sequence[tuple[str, Derived]]]
    claimed: Sequence[str]

    @cached_property
    def table(self) -> Table:
        """The table after the rule. Raises UsageError where two tensors would have one name."""
        return rebuilt(self.before, self.gone, self.made)


class Rule(Protocol):
    """Changes names, tensors or both; everything that it does not match stays as it is."""

    op: ClassVar[str]

    @property
    def templates(self) -> Sequence[str] | None:
        """The templates of the names that the rule looks at; None: it may look at any."""

    def transform(self, table: Table) -> Step:
        """Return what the rule does to a table. Raises UsageError with every tensor that it does not fit."""

    def invert(self) -> Rule:
        """Return the rule that undoes this one. Raises NoInverseError where there is none."""

    def bound(self, table: Table) -> Rule:
        """Return the rule with the sizes that its inverse needs, where all keys have the same."""

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON data."""


class RuleBase:
    """The methods that rules share: JSON data from the fields, all faults in one error, no sizes to fill in."""

    op: ClassVar[str]

    @property
    def templates(self) -> Sequence[str] | None:
        """The templates of the names that the rule looks at; None: it may look at any."""
        return None

    def bound(self, table: Table) -> Any:  # noqa: ARG002
        """Return the rule itself."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON data, without fields that have their default value."""
        document: dict[str, Any] = {"op": self.op}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value != item.default:
                document[item.name] = list(value) if isinstance(value, tuple) else value
        return document

    def _refuse(self, faults: Sequence[str]) -> None:
        """Raise UsageError with the tensors that a rule does not fit, if there are any."""
        if faults:
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise UsageError(
                f"the key map's {self.op} does not fit {len(faults)} tensors",
                where="; ".join(faults[:5]) + more,
                cure="correct the rule, or use a map that was written for this checkpoint",
            )


def rebuilt(table: Table, taken: Iterable[str], made: Mapping[str, Sequence[tuple[str, Derived]]]) -> Table:
    """Return the table without the names in `taken` and with the tensors in `made`.

    `made` is filed under names of the table: each new tensor takes the place of the name that it is filed under.
    Raises UsageError where two tensors would have one name.
    """
    gone = frozenset(taken)
    result: Table = {}
    origin: dict[str, str] = {}
    clashes: list[str] = []
    for name, tensor in table.items():
        new = list(made.get(name, ()))
        if name not in gone:
            new.insert(0, (name, tensor))
        for key, value in new:
            if key in result:
                clashes.append(f"{origin[key]} and {name} both become {key}")
            result[key] = whole(value)
            origin[key] = name
    refuse_clashes(clashes)
    return result


def whole(tensor: Derived) -> Derived:
    """Return what a table holds of a tensor, which may consist of padding alone."""
    return Joined(tensor.dtype, tensor.shape, 0, (tensor,)) if isinstance(tensor, Filled) else tensor


def refuse_clashes(clashes: Sequence[str]) -> None:
    """Raise UsageError for names that two tensors would have."""
    if clashes:
        raise UsageError(
            f"the key map gives {len(clashes)} keys a name that is taken",
            where="; ".join(clashes[:5]),
            cure="make the templates more exact, or drop one of each pair",
        )


def template_list(what: str, texts: Any) -> tuple[str, ...]:
    """Return templates as a tuple. Raises UsageError unless they are two or more different texts."""
    if not isinstance(texts, (list, tuple)) or not 2 <= len(texts) <= MOST_TEMPLATES:
        raise UsageError(f"{what} takes 2 to {MOST_TEMPLATES:,} templates", where=repr(texts)[:200])
    for text in texts:
        key_template(text)
    if len(set(texts)) != len(texts):
        raise UsageError(f"{what} names a template twice", where=repr(texts)[:200])
    return tuple(texts)


def whole_number(what: str, value: Any, *, least: int = 0, most: int = LARGEST) -> int:
    """Return a whole number. Raises UsageError outside the bounds, and for other types, bool and float included."""
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"{what} is a whole number from {least} to {most:,}", where=repr(value)[:200])
    return value


def dimension(value: Any) -> int:
    """Return a dimension, negative ones counted from the end as in torch. Raises UsageError for anything else."""
    return whole_number("a dimension", value, least=-64, most=63)


def sizes_of(value: Any, count: int) -> tuple[int, ...] | None:
    """Return the sizes along a dimension, one for each template; None stays None. Raises UsageError."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise UsageError(f"give {count} sizes, one for each template", where=repr(value)[:200])
    return tuple(whole_number("a size", size) for size in value)


def only(values: Iterable[Any]) -> Any:
    """Return the value that all of `values` are equal to, or None where they differ or there are none."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def shown(shape: Sequence[int]) -> str:
    """Return a shape for a message."""
    return f"[{', '.join(map(str, shape))}]"
