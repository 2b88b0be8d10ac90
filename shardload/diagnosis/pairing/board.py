"""Board: the families of both sides that are not paired yet, and the links found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shardload.diagnosis.pairing.likeness import Likeness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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


_COMPARED = 60_000  # pairs of names for every board, however small
_AT_ONCE = 40_000  # of one shape: comparing all of a larger group takes too long
_COMPARED_EACH = 20  # and so many more for each family


@dataclass
class Effort:
    """How many pairs of names are still compared: `left`, and the families that there were too many of.

    It is counted and not timed, so that one checkpoint has one answer. What is not compared has no partner.
    """

    left: int
    passed_over: dict[int, KeyFamily] = field(default_factory=dict)

    def allows(self, pairs: int, families: Iterable[KeyFamily]) -> bool:
        """Whether so many pairs may be compared now; if not, their families are noted."""
        if pairs <= min(self.left, _AT_ONCE):
            self.left -= pairs
            return True
        self.passed_over |= {id(family): family for family in families}
        return False


class _Open:
    """The open families of one side. Changes are made when the families are next asked for, all at once."""

    def __init__(self, families: Iterable[KeyFamily]) -> None:
        self._families = list(families)
        self._instead: dict[int, Sequence[KeyFamily]] = {}

    @property
    def families(self) -> list[KeyFamily]:
        if self._instead:
            self._families = list(self._now(self._families))
            self._instead = {}
        return self._families

    def replace(self, family: KeyFamily, parts: Sequence[KeyFamily] = ()) -> None:
        self._instead[id(family)] = parts

    def _now(self, families: Iterable[KeyFamily]) -> Iterator[KeyFamily]:
        for family in families:
            parts = self._instead.get(id(family))
            if parts is None:
                yield family
            else:
                yield from self._now(parts)


class Board:
    """The families of both sides that nothing explains yet (`stored`, `wanted`), and the links found so far.

    `first_stored` and `first_wanted` are those that were open in the beginning. `effort` is for finding pairs,
    `proving` for what speaks for them.
    """

    def __init__(
        self,
        stored: Iterable[KeyFamily],
        wanted: Iterable[KeyFamily],
        likeness: Likeness,
        module_classes: Mapping[str, str] | None = None,
    ) -> None:
        self._stored, self._wanted = _Open(stored), _Open(wanted)
        self.likeness = likeness
        self.module_classes = module_classes or {}
        self.links: list[Link] = []
        self.exact: list[KeyFamily] = []
        self.first_stored, self.first_wanted = tuple(self.stored), tuple(self.wanted)
        most = _COMPARED + _COMPARED_EACH * (len(self.stored) + len(self.wanted))
        self.effort, self.proving = Effort(most), Effort(most)

    @classmethod
    def of(
        cls,
        stored: Sequence[KeyFamily],
        wanted: Sequence[KeyFamily],
        module_classes: Mapping[str, str] | None = None,
    ) -> Board:
        """Return the board of two sides; keys with equal names and shapes are `exact`, and not open."""
        there = {family.template: family for family in wanted}
        exact: list[KeyFamily] = []
        left: list[KeyFamily] = []
        for family in stored:
            other = there.get(family.template)
            same = _same(family, other) if other is not None else []
            if len(same) == len(family.members):
                exact.append(family)
            elif same:
                exact.append(family.where(same))
            if len(same) < len(family.members):
                left.append(family.without(same))
            if other is not None and same:
                there[family.template] = other.without(same)
        lacking = [family for family in there.values() if family.members]
        board = cls(left, lacking, Likeness(stored, wanted), module_classes)
        board.exact = exact
        for family in exact:
            board.likeness.learn(family.template, family.template)
        return board

    @property
    def stored(self) -> list[KeyFamily]:
        """The checkpoint's families without a partner."""
        return self._stored.families

    @property
    def wanted(self) -> list[KeyFamily]:
        """The model's families that nothing fills."""
        return self._wanted.families

    def add(self, *links: Link) -> None:
        """Add links; their families are no longer open."""
        self.links += links
        for link in links:
            for before in link.stored:
                if link.kind != "alias":
                    self._stored.replace(before)
                for after in link.wanted:
                    if before.arity == after.arity:
                        self.likeness.learn(before.template, after.template)
            for after in link.wanted:
                self._wanted.replace(after)

    @property
    def passed_over(self) -> list[KeyFamily]:
        """The checkpoint's open families that there were too many of to compare them with every other one."""
        noted = self.effort.passed_over.keys() | self.proving.passed_over.keys()
        return [family for family in self.stored if id(family) in noted]

    def withdraw(self, links: Sequence[Link]) -> None:
        """Take links back; their families are open again."""
        gone = {id(link) for link in links}
        self.links = [link for link in self.links if id(link) not in gone]
        self.stored.extend(family for link in links for family in link.stored)
        self.wanted.extend(family for link in links for family in link.wanted)

    def replace(
        self, side: Literal["stored", "wanted"], family: KeyFamily, parts: Sequence[KeyFamily]
    ) -> None:
        """Replace a family by its parts."""
        (self._stored if side == "stored" else self._wanted).replace(family, parts)


def _same(family: KeyFamily, other: KeyFamily) -> list[Indices]:
    if family.members == other.members:
        return list(family.members)
    if len(family.members) == len(other.members) and family.from_zero == other.from_zero:
        return []  # numbered from another layer on: equal numbers are not the same layer
    return [indices for indices, shape in family.members.items() if other.members.get(indices) == shape]
