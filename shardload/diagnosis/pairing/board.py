"""Board: the families of both sides that are not paired yet, and the links found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shardload.diagnosis.pairing.likeness import Likeness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.diagnosis.pairing.key_family import KeyFamily
    from shardload.keys import Indices

LinkKind = Literal["rename", "transpose", "split", "cat", "stack", "unstack", "alias", "drop"]


@dataclass(frozen=True, eq=False)
class Link:
    """Families of the checkpoint, and the families of the model that they become.

    `rename` and `transpose` link one family with one; `split` one with several along `dim`, `cat` several with one;
    `stack` several with one (the number at index position `counted` is stacked; two or more families are first
    joined along `dim`), `unstack` one with several; `drop` has no family of the model. `offset` is added to the
    indices. `confidence` lies between 0 and 1, `margin` is the distance to the runner-up's score. `turned`: the
    matrices are transposed. `unproven` says what names and shapes can't show.
    """

    kind: LinkKind
    stored: tuple[KeyFamily, ...]
    wanted: tuple[KeyFamily, ...]
    confidence: float
    margin: float = 1.0
    dim: int = 0
    counted: int = 0
    turned: bool = False
    offset: tuple[int, ...] = ()
    shape_mismatch: bool = False
    unproven: str = ""
    evidence: str = ""


@dataclass
class Board:
    """The families of both sides that nothing explains yet (`stored`, `wanted`), and the links found so far.

    `first_stored` and `first_wanted` are those that were open in the beginning.
    """

    stored: list[KeyFamily]
    wanted: list[KeyFamily]
    likeness: Likeness
    links: list[Link] = field(default_factory=list)
    exact: list[KeyFamily] = field(default_factory=list)
    module_classes: Mapping[str, str] = field(default_factory=dict)
    first_stored: Sequence[KeyFamily] = ()
    first_wanted: Sequence[KeyFamily] = ()

    @classmethod
    def of(
        cls,
        stored: Sequence[KeyFamily],
        wanted: Sequence[KeyFamily],
        module_classes: Mapping[str, str] | None = None,
    ) -> Board:
        """Return the board of two sides; keys with equal names and shapes are `exact`, and not open."""
        board = cls([], [], Likeness(stored, wanted), module_classes=module_classes or {})
        there = {family.template: family for family in wanted}
        for family in stored:
            other = there.get(family.template)
            same = _same(family, other) if other is not None else []
            if len(same) == len(family.members):
                board.exact.append(family)
            elif same:
                board.exact.append(family.where(same))
            if len(same) < len(family.members):
                left = family.without(same)
                board.stored.append(left)
            if other is not None and same:
                there[family.template] = other.without(same)
        board.wanted = [family for name in there if (family := there[name]).members]
        for family in board.exact:
            board.likeness.learn(family.template, family.template)
        board.first_stored, board.first_wanted = tuple(board.stored), tuple(board.wanted)
        return board

    def add(self, *links: Link) -> None:
        """Add links; their families are no longer open."""
        self.links += links
        used = {id(family) for link in links if link.kind != "alias" for family in link.stored}
        filled = {id(family) for link in links for family in link.wanted}
        self.stored = [family for family in self.stored if id(family) not in used]
        self.wanted = [family for family in self.wanted if id(family) not in filled]
        for link in links:
            for before in link.stored:
                for after in link.wanted:
                    if before.arity == after.arity:
                        self.likeness.learn(before.template, after.template)

    def withdraw(self, links: Sequence[Link]) -> None:
        """Take links back; their families are open again."""
        gone = {id(link) for link in links}
        self.links = [link for link in self.links if id(link) not in gone]
        self.stored += [family for link in links for family in link.stored]
        self.wanted += [family for link in links for family in link.wanted]

    def replace(
        self, side: Literal["stored", "wanted"], family: KeyFamily, parts: Sequence[KeyFamily]
    ) -> None:
        """Replace a family by its parts."""
        families: list[KeyFamily] = getattr(self, side)
        place = families.index(family)
        families[place : place + 1] = parts


def _same(family: KeyFamily, other: KeyFamily) -> list[Indices]:
    if family.members == other.members:
        return list(family.members)
    if len(family.members) == len(other.members) and family.from_zero == other.from_zero:
        return []  # numbered from another layer on: equal numbers are not the same layer
    return [indices for indices, shape in family.members.items() if other.members.get(indices) == shape]
