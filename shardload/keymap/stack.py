"""stack and unstack: numbered tensors as one tensor with one more dimension, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from shardload.keymap.derived import Derived, entries, join, unsqueezed
from shardload.keymap.key_template import key_template, same_placeholders
from shardload.keymap.rule import RuleBase, Step, dimension, only, shown, whole_number
from shardload.keys import ranges

if TYPE_CHECKING:
    from shardload.keymap.rule import Table

MOST = 65_536  # entries that one tensor is unstacked into: a header may claim any shape


@dataclass(frozen=True)
class Stack(RuleBase):
    """Stack the tensors that `{n}` numbers, from 0 and without a gap; `dim` is the new dimension, `count` its size."""

    op: ClassVar[str] = "stack"
    source: str
    target: str
    dim: int = 0
    count: int | None = None

    def __post_init__(self) -> None:
        _check(self, self.source, self.target)

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of its source."""
        return (self.source,)

    def transform(self, table: Table) -> Step:
        """Return the table with each stack in the place of the first of its tensors."""
        made: dict[str, list[tuple[str, Derived]]] = {}
        taken: list[str] = []
        faults: list[str] = []
        for values, members in self._groups(table).items():
            target = key_template(self.target).fill(values) or ""
            fault = self._fault(target, members, table)
            if fault:
                faults.append(fault)
                continue
            names = [members[number] for number in range(len(members))]
            dim = self.dim % (len(table[names[0]].shape) + 1)
            whole = join([unsqueezed(table[name], dim) for name in names], dim)
            made[next(iter(members.values()))] = [(target, cast("Derived", whole))]
            taken += names
        self._refuse(faults)
        return Step(table, taken, made, taken)

    def _groups(self, table: Table) -> dict[tuple[str, ...], dict[int, str]]:
        template = key_template(self.source)
        at = template.placeholders.index("{n}")
        groups: dict[tuple[str, ...], dict[int, str]] = {}
        for name in table:
            values = template.match(name)
            if values is not None and len(values[at]) < 10 and str(int(values[at])) == values[at]:
                groups.setdefault((*values[:at], *values[at + 1 :]), {})[int(values[at])] = name
        return groups

    def _fault(self, target: str, members: dict[int, str], table: Table) -> str | None:
        count = len(members) if self.count is None else self.count
        if set(members) != set(range(count)):
            return f"{target}: has {ranges(members)}, and needs {ranges(range(count))}"
        tensors = [table[name] for name in members.values()]
        for what, found in (
            ("shapes", {shown(tensor.shape) for tensor in tensors}),
            ("dtypes", {tensor.dtype for tensor in tensors}),
        ):
            if len(found) > 1:
                return f"{target}: its parts have the {what} {', '.join(sorted(found))}"
        rank = len(tensors[0].shape) + 1
        return None if -rank <= self.dim < rank else f"{target}: no dimension {self.dim} in {rank}"

    def bound(self, table: Table) -> Stack:
        """Return the stack with its count, where all keys have the same."""
        count = only(len(members) for members in self._groups(table).values())
        return self if self.count is not None or count is None else replace(self, count=count)

    def invert(self) -> Unstack:
        """Return the unstack."""
        return Unstack(self.target, self.source, self.dim, self.count)


@dataclass(frozen=True)
class Unstack(RuleBase):
    """Make one tensor of each entry of a dimension; `{n}` in the target is the entry's number, from 0."""

    op: ClassVar[str] = "unstack"
    source: str
    target: str
    dim: int = 0
    count: int | None = None

    def __post_init__(self) -> None:
        _check(self, self.target, self.source)

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of its source."""
        return (self.source,)

    def transform(self, table: Table) -> Step:
        """Return the table with the entries in the place of the whole tensor."""
        source, target = key_template(self.source), key_template(self.target)
        at = target.placeholders.index("{n}")
        made: dict[str, list[tuple[str, Derived]]] = {}
        faults: list[str] = []
        for name, tensor in table.items():
            values = source.match(name)
            if values is None:
                continue
            rank = len(tensor.shape)
            count = tensor.shape[self.dim] if -rank <= self.dim < rank else 0
            if not 0 < count <= MOST or self.count not in (None, count):
                wanted = f"1 to {MOST:,}" if self.count is None else f"{self.count}"
                faults.append(
                    f"{name} {shown(tensor.shape)} has no {wanted} entries along dimension {self.dim}"
                )
                continue
            made[name] = [
                (
                    target.fill((*values[:at], str(number), *values[at:])) or "",
                    cast("Derived", entry),
                )
                for number, entry in enumerate(entries(tensor, self.dim % rank))
            ]
        self._refuse(faults)
        return Step(table, made, made, list(made))

    def bound(self, table: Table) -> Unstack:
        """Return the unstack with its count, where all keys have the same."""
        source = key_template(self.source)
        count = only(
            tensor.shape[self.dim]
            for name, tensor in table.items()
            if source.match(name) is not None and -len(tensor.shape) <= self.dim < len(tensor.shape)
        )
        return self if self.count is not None or not count else replace(self, count=count)

    def invert(self) -> Stack:
        """Return the stack."""
        return Stack(self.target, self.source, self.dim, self.count)


def _check(rule: Any, counted: str, other: str) -> None:
    key_template(counted).require(counter=True)
    key_template(other).require()
    same_placeholders(counted, other, ignoring="{n}")
    dimension(rule.dim)
    if rule.count is not None:
        whole_number("a count", rule.count, least=1, most=MOST)
