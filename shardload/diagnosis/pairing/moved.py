"""Whole subtrees under another path, for models with too many names to compare every pair."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.board import Link
from shardload.keys import no_weight

if TYPE_CHECKING:
    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily

_MANY = 5_000  # open families from which on names are not compared one by one
_LONGEST = 6  # segments of an end that both sides share


def pair_moved_trees(board: Board) -> None:
    """Link families with the same last segments and only one partner, the most frequent change of path first."""
    if min(len(board.stored), len(board.wanted)) < _MANY:
        return
    ends: dict[tuple[object, str], list[KeyFamily]] = defaultdict(list)
    for family in board.wanted:
        for end in _ends(family.template):
            ends[(family.signature, end)].append(family)
    moves: Counter[tuple[str, str]] = Counter()
    found: list[tuple[tuple[str, str], KeyFamily, KeyFamily]] = []
    for old in board.stored:
        for end in _ends(old.template):
            partners = ends.get((old.signature, end), [])
            if len(partners) == 1 and no_weight(old.template) == no_weight(partners[0].template):
                move = (old.template[: -len(end)], partners[0].template[: -len(end)])
                moves[move] += 1
                found.append((move, old, partners[0]))
                break
    taken: set[int] = set()
    links = []
    for move, old, new in sorted(found, key=lambda item: -moves[item[0]]):
        if moves[move] > 1 and id(new) not in taken:
            taken.add(id(new))
            links.append(Link("rename", (old,), (new,), confidence=0.96 if moves[move] > 9 else 0.8))
    board.add(*links)


def _ends(template: str) -> list[str]:
    """Return the last segments of a template, in runs from the longest to the shortest."""
    segments = template.split(".")
    longest = min(_LONGEST, len(segments) - 1)
    return [".".join(segments[-length:]) for length in range(longest, 0, -1)]
