"""What is left in two modules of a block whose other tensors have each other: evidence judges it afterwards."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.renaming import Choice, link_of
from shardload.diagnosis.pairing.words import GENERIC_LEAVES

if TYPE_CHECKING:
    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily


def pair_left_over(board: Board) -> None:
    """Link the only open families of one signature in two modules of a list of layers that others link."""
    moves: Counter[tuple[str, str]] = Counter()
    for link in board.links:
        if link.kind in {"rename", "transpose"} and not link.shape_mismatch:
            moves[holder(link.stored[0]), holder(link.wanted[0])] += 1
    moves.update((holder(family), holder(family)) for family in board.exact)
    partner: dict[str, str] = {}
    for (old, new), _ in moves.most_common():
        partner.setdefault(old, new)
    places: dict[object, tuple[list[KeyFamily], list[KeyFamily]]] = defaultdict(lambda: ([], []))
    for family in board.stored:
        if family.arity and holder(family) in partner:
            places[partner[holder(family)], family.unordered][0].append(family)
    for family in board.wanted:
        places[holder(family), family.unordered][1].append(family)
    for olds, news in places.values():
        if len(olds) == len(news) == 1:
            score = board.likeness.score(olds[0].template, news[0].template)
            board.add(link_of(board, Choice(score, 1.0, olds[0], news[0])))


def holder(family: KeyFamily) -> str:
    """Return the path of what holds the module of a family, or the parameter that is no module's weight or bias."""
    segments = family.segments
    return ".".join(segments[: -2 if segments[-1] in GENERIC_LEAVES else -1])
