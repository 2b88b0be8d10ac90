"""KeyFamily: the keys of one template, each with its indices and its shape."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from shardload.keys import split_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shardload.keys import Indices

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class KeyFamily:
    """Keys that differ in numbers only: `layers.{}.mlp.weight`, with a shape for each tuple of indices.

    A number that names a part instead of counting parts stays in the template (`mlp.0.weight`).
    """

    template: str
    members: dict[Indices, Shape] = field(repr=False)

    @property
    def segments(self) -> list[str]:
        """The template's segments."""
        return self.template.split(".")

    @property
    def arity(self) -> int:
        """How many indices each key has."""
        return len(next(iter(self.members)))

    @cached_property
    def shape(self) -> Shape | None:
        """The shape of all its tensors, or None where they differ."""
        shapes = set(self.members.values())
        return shapes.pop() if len(shapes) == 1 else None

    @cached_property
    def signature(self) -> frozenset[tuple[Indices, Shape]]:
        """Indices and shapes: equal for two families that differ in their name only."""
        return frozenset(self.members.items())

    @cached_property
    def unordered(self) -> frozenset[tuple[Indices, Shape]]:
        """The signature, with the last two dimensions sorted (of matrices and stacks of matrices)."""
        turned = {shape: _sorted(shape) for shape in set(self.members.values())}
        if all(before == after for before, after in turned.items()):
            return self.signature
        return frozenset((indices, turned[shape]) for indices, shape in self.members.items())

    @cached_property
    def from_zero(self) -> frozenset[tuple[Indices, Shape]]:
        """The unordered signature, with the numbers at each position counted from the lowest."""
        low = tuple(map(min, zip(*self.members, strict=True)))
        if not any(low):
            return self.unordered
        return frozenset(
            (tuple(index - least for index, least in zip(indices, low, strict=True)), shape)
            for indices, shape in self.unordered
        )

    @cached_property
    def index(self) -> frozenset[Indices]:
        """The indices of its keys."""
        return frozenset(self.members)

    def key(self, indices: Indices) -> str:
        """Return the key that has the given indices."""
        return fill(self.template, indices)

    @cached_property
    def names(self) -> Sequence[str]:
        """Its keys."""
        if not self.arity:
            return [self.template]
        pattern = self.template.replace("%", "%%").replace("{}", "%d")
        return [pattern % indices for indices in self.members]

    def where(self, indices: Iterable[Indices]) -> KeyFamily:
        """Return the part of the family that has the given indices."""
        return KeyFamily(self.template, {index: self.members[index] for index in indices})

    def without(self, indices: Iterable[Indices]) -> KeyFamily:
        """Return the part of the family without the given indices."""
        gone = set(indices)
        return self.where(index for index in self.members if index not in gone) if gone else self

    def with_literal(self, position: int) -> list[KeyFamily]:
        """Return one family for each number at an index position; the number becomes part of its template."""
        groups: dict[int, dict[Indices, Shape]] = defaultdict(dict)
        for indices, shape in self.members.items():
            rest = (*indices[:position], *indices[position + 1 :])
            groups[indices[position]][rest] = shape
        parts = self.template.split("{}")
        result = []
        for number, members in groups.items():
            joints = ["{}"] * (len(parts) - 1)
            joints[position] = str(number)
            text = "".join(part + joint for part, joint in zip(parts, [*joints, ""], strict=True))
            result.append(KeyFamily(text, members))
        return result


def _sorted(shape: Shape) -> Shape:
    return (*shape[:-2], *sorted(shape[-2:])) if len(shape) in {2, 3} else shape


def fill(template: str, indices: Indices) -> str:
    """Return the template with its `{}` replaced in order."""
    if not indices:
        return template
    parts = template.split("{}")
    return parts[0] + "".join(f"{index}{part}" for index, part in zip(indices, parts[1:], strict=True))


def families_of(shapes: Mapping[str, Shape]) -> list[KeyFamily]:
    """Return the families of some keys, in order of first appearance."""
    groups: dict[str, dict[Indices, Shape]] = {}
    parts: dict[str, tuple[str, Indices]] = {}
    for key, shape in shapes.items():
        template, indices = _split(key, parts)
        group = groups.get(template)
        if group is None:
            group = groups[template] = {}
        group[indices] = shape
    return [KeyFamily(template, members) for template, members in groups.items()]


def _split(key: str, parts: dict[str, tuple[str, Indices]]) -> tuple[str, Indices]:
    """Return what `split_key` does. Keys share their paths, and their ends are few: `parts` has what both became."""
    at = key.rfind(".", 0, key.rfind("."))
    if at < 0 or "{" in key:
        return split_key(key)
    path, end = key[:at], key[at:]
    first = parts.get(path)
    if first is None:
        first = parts[path] = _split(path, parts)
    last = parts.get(end)
    if last is None:
        last = parts[end] = split_key(end)
    return first[0] + last[0], first[1] + last[1]
