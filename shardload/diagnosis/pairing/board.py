"""Board: what is still open on both sides of a case, and the links that have been found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shardload.diagnosis.pairing.key_family import KeyFamily, families_of
from shardload.diagnosis.pairing.likeness import Likeness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardload.diagnosis.pairing.key_family import Shape

LinkKind = Literal["rename", "transpose", "split", "cat", "stack", "unstack", "alias", "drop"]


@dataclass(frozen=True, eq=False)
class Link:
    """A cause that was found: families of the checkpoint, and the families of the model that they become.

    `rename` and `transpose` link one family with one; `split` one with several along `dim`, `cat` several with one,
    `stack` several (the number at index position `counted` is stacked; more than one family is put together along
    `dim` besides) with one, `unstack` the other way round; `drop` has no family of the model. `offset` is what
    is added to each index. `confidence` lies between 0 and 1, `margin` is the distance to the runner-up's score.
    `unproven` says what names and shapes can't show.
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
    misshapen: bool = False
    unproven: str = ""
    evidence: str = ""


@dataclass
class Board:
    """Families of both sides that nothing explains yet, and what was found. Rules take from it and add links."""

    stored: list[KeyFamily]
    wanted: list[KeyFamily]
    likeness: Likeness
    links: list[Link] = field(default_factory=list)
    exact: list[KeyFamily] = field(default_factory=list)
    module_classes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        stored: Mapping[str, Shape],
        wanted: Mapping[str, Shape],
        module_classes: Mapping[str, str] | None = None,
    ) -> Board:
        """Return the board of two sets of keys; keys with equal names and shapes are explained already."""
        exact = [key for key, shape in stored.items() if wanted.get(key) == shape]
        all_stored, all_wanted = families_of(stored), families_of(wanted)
        board = cls([], [], Likeness(all_stored, all_wanted), module_classes=module_classes or {})
        same = set(exact)
        board.stored = families_of({key: shape for key, shape in stored.items() if key not in same})
        board.wanted = families_of({key: shape for key, shape in wanted.items() if key not in same})
        board.exact = families_of({key: stored[key] for key in exact})
        for family in board.exact:
            board.likeness.learn(family.template, family.template)
        return board

    def add(self, link: Link) -> None:
        """Accept a link: its families are no longer open."""
        self.links.append(link)
        if link.kind != "alias":
            self.stored = _without(self.stored, link.stored)
        self.wanted = _without(self.wanted, link.wanted)
        for before in link.stored:
            for after in link.wanted:
                if before.arity == after.arity:
                    self.likeness.learn(before.template, after.template)

    def replace(
        self, side: Literal["stored", "wanted"], family: KeyFamily, parts: Sequence[KeyFamily]
    ) -> None:
        """Put parts of a family in its place."""
        families: list[KeyFamily] = getattr(self, side)
        place = families.index(family)
        families[place : place + 1] = parts


def _without(families: list[KeyFamily], gone: Sequence[KeyFamily]) -> list[KeyFamily]:
    ids = set(map(id, gone))
    return [family for family in families if id(family) not in ids]
