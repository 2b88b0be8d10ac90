"""split and cat: one tensor cut into several along a dimension, and several joined to one; each undoes the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from shardload.errors import Cures, NoInverseError, Wording
from shardload.keymap.derived import Derived, join, narrowed
from shardload.keymap.key_template import key_template, same_placeholders
from shardload.keymap.rule import RuleBase, Step, dimension, only, shown, sizes_of, template_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.keymap.rule import Table


@dataclass(frozen=True)
class Split(RuleBase):
    """Cut a tensor along `dim` into one part for each target. `sizes` count elements along it; None: equal parts."""

    op: ClassVar[str] = "split"
    source: str
    targets: tuple[str, ...]
    sizes: tuple[int, ...] | None = None
    dim: int = 0

    def __post_init__(self) -> None:
        _check(self, "targets", self.source)

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of its source."""
        return (self.source,)

    def transform(self, table: Table) -> Step:
        """Return the table with the parts in the place of the whole tensor."""
        made: dict[str, list[tuple[str, Derived]]] = {}
        faults: list[str] = []
        source = key_template(self.source)
        for name, tensor in table.items():
            values = source.match(name)
            if values is None:
                continue
            sizes = self._sizes(tensor.shape)
            if sizes is None:
                wanted = "equal parts" if self.sizes is None else shown(self.sizes)
                faults.append(
                    f"{name} {shown(tensor.shape)} can't be cut into {wanted} along dimension {self.dim}"
                )
                continue
            dim, at, parts = self.dim % len(tensor.shape), 0, []
            for target, size in zip(self.targets, sizes, strict=True):
                part = cast("Derived", narrowed(tensor, dim, at, size))
                parts.append((key_template(target).fill(values) or "", part))
                at += size
            made[name] = parts
        self._refuse(faults)
        return Step(table, made, made, list(made))

    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        if not -len(shape) <= self.dim < len(shape):
            return None
        whole, count = shape[self.dim], len(self.targets)
        if self.sizes is None:
            return (whole // count,) * count if whole % count == 0 else None
        return self.sizes if sum(self.sizes) == whole else None

    def bound(self, table: Table) -> Split:
        """Return the split with its sizes, where all keys have the same."""
        source = key_template(self.source)
        sizes = only(
            self._sizes(tensor.shape) for name, tensor in table.items() if source.match(name) is not None
        )
        return self if self.sizes is not None or sizes is None else replace(self, sizes=sizes)

    def invert(self) -> Cat:
        """Return the cat that joins the parts."""
        return Cat(self.targets, self.source, self.dim, self.sizes)


@dataclass(frozen=True)
class Cat(RuleBase):
    """Join one tensor of each source along `dim`, in the order of the sources. `sizes` is what each has along it."""

    op: ClassVar[str] = "cat"
    sources: tuple[str, ...]
    target: str
    dim: int = 0
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self, "sources", self.target)

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates of its sources."""
        return self.sources

    def transform(self, table: Table) -> Step:
        """Return the table with each joined tensor in the place of its first part."""
        made: dict[str, list[tuple[str, Derived]]] = {}
        taken: list[str] = []
        faults: list[str] = []
        for values, names in self._groups(table).items():
            target = key_template(self.target).fill(values) or ""
            fault = self._fault(target, names, table, values)
            if fault:
                faults.append(fault)
                continue
            parts = [table[name] for name in names if name is not None]
            first = cast("str", names[0])
            made[first] = [(target, cast("Derived", join(parts, self.dim % len(parts[0].shape))))]
            taken += cast("list[str]", names)
        self._refuse(faults)
        return Step(table, taken, made, taken)

    def _groups(self, table: Table) -> dict[tuple[str, ...], list[str | None]]:
        """Return the names to join, a list for each set of values of the placeholders; None for a part that lacks."""
        groups: dict[tuple[str, ...], list[str | None]] = {}
        templates = [key_template(source) for source in self.sources]
        for name in table:
            for place, template in enumerate(templates):
                values = template.match(name)
                if values is not None:
                    groups.setdefault(values, [None] * len(templates))[place] = name
                    break
        return groups

    def _fault(
        self, target: str, names: Sequence[str | None], table: Table, values: tuple[str, ...]
    ) -> str | None:
        lacking = [
            key_template(source).fill(values)
            for source, name in zip(self.sources, names, strict=True)
            if name is None
        ]
        if lacking:
            return f"{target} lacks its part {lacking[0]}"
        parts = [table[name] for name in names if name is not None]
        shapes = [part.shape for part in parts]
        rank = len(shapes[0])
        if not -rank <= self.dim < rank or any(len(shape) != rank for shape in shapes):
            return f"{target}: {', '.join(map(shown, shapes))} have no common dimension {self.dim}"
        dim = self.dim % rank
        if len({(*shape[:dim], *shape[dim + 1 :]) for shape in shapes}) > 1:
            return f"{target}: {', '.join(map(shown, shapes))} differ outside of dimension {self.dim}"
        if len({part.dtype for part in parts}) > 1:
            return f"{target}: its parts are stored as {', '.join(part.dtype for part in parts)}"
        found = tuple(shape[dim] for shape in shapes)
        if self.sizes is not None and found != self.sizes:
            return (
                f"{target}: its parts have {shown(found)} along dimension {self.dim}, not {shown(self.sizes)}"
            )
        return None

    def bound(self, table: Table) -> Cat:
        """Return the cat with the sizes of its parts, where all keys have the same."""
        if self.sizes is not None:
            return self
        found = set()
        for names in self._groups(table).values():
            shapes = [table[name].shape for name in names if name is not None]
            found.add(tuple(shape[self.dim] for shape in shapes if -len(shape) <= self.dim < len(shape)))
        sizes = only(found)
        return replace(self, sizes=sizes) if sizes is not None and len(sizes) == len(self.sources) else self

    def invert(self) -> Split:
        """Return the split into the parts. Raises NoInverseError where their sizes are not known."""
        if self.sizes is None:
            raise NoInverseError(
                "a cat without sizes has no inverse",
                where=f"cat into {self.target!r}",
                cure=Cures(
                    Wording("give {sizes}", sizes=...), "let KeyMap.bind(checkpoint.tensors) fill them in"
                ),
            )
        return Split(self.target, self.sources, self.sizes, self.dim)


def _check(rule: Any, many: str, one: str) -> None:
    templates = template_list(rule.op, getattr(rule, many))
    for text in (one, *templates):
        key_template(text).require()
    same_placeholders(one, *templates)
    object.__setattr__(rule, many, templates)
    object.__setattr__(rule, "sizes", sizes_of(rule.sizes, len(templates)))
    dimension(rule.dim)
