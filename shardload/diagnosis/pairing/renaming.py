"""Families of equal indices and shapes under other names: paired by words, the widest margin first."""

from __future__ import annotations

from collections import defaultdict
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

from shardload.diagnosis.pairing.board import Link
from shardload.diagnosis.pairing.layouts import layout_doubt

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily

_STEPS = (0.45, 0.3, 0.2, 0.12, 0.07)
_TURNED = 0.2  # what a transpose costs: names have to speak for it
_OWN_NAME = 0.4  # what it costs to leave a namesake of another shape behind
_MOST_ASSIGNED = 5  # families of a bucket whose orders are all tried: 120 of them
ALONE = 9.0  # the margin where nothing else has that signature


class Choice(NamedTuple):
    """Two families that are each other's best match, and by what margin."""

    score: float
    margin: float
    old: KeyFamily
    new: KeyFamily


def pair_renamed(board: Board, *, least: float = 0.35, alone: bool = False) -> None:
    """Link families whose indices and shapes are equal, perhaps after a transpose.

    Wide margins are accepted before narrow ones, and each link teaches the next. `least` is the lowest score. With
    `alone`, families that are the only ones of their signature are linked whatever their names.
    """
    pair(board, lambda family: family.unordered, least=least, alone=alone)


def pair(board: Board, bucket: Callable[[KeyFamily], Hashable], *, least: float, alone: bool = False) -> None:
    """Link families of the same bucket by their names."""
    # A bucket is what the numbers and shapes of thousands of keys have in common: each is compared once, then counted.
    numbers: dict[KeyFamily, int] = {}
    seen: dict[Hashable, int] = {}

    def number(family: KeyFamily) -> int:
        if family not in numbers:
            numbers[family] = seen.setdefault(bucket(family), len(seen))
        return numbers[family]

    choices = _choices(board, number)
    for step in _STEPS:
        while accepted := [choice for choice in choices if _is_clear(choice, step, least, alone=alone)]:
            board.add(*[link_of(board, choice) for choice in accepted])
            choices = _choices(board, number)


def _is_clear(choice: Choice, step: float, least: float, *, alone: bool) -> bool:
    if choice.margin >= ALONE:
        return choice.score >= (0.0 if alone else max(least, step))
    return choice.margin >= step and choice.score >= least


def is_turned(old: KeyFamily, new: KeyFamily) -> bool:
    """Whether two families of one bucket have different shapes: one is the transpose of the other."""
    return next(iter(old.members.values())) != next(iter(new.members.values()))


def link_of(board: Board, choice: Choice) -> Link:
    """Return the link of two families whose signatures are equal, perhaps after a transpose."""
    score, margin, old, new = choice
    words = board.likeness.names_agree(old.template, new.template)
    shift = tuple(after - before for before, after in zip(min(old.members), min(new.members), strict=True))
    return Link(
        "transpose" if is_turned(old, new) else "rename",
        (old,),
        (new,),
        confidence=_confidence(score, margin, words),
        margin=min(margin, 1.0),
        offset=shift if any(shift) else (),
        unproven=layout_doubt(old, new),
    )


def _confidence(score: float, margin: float, words: float) -> float:
    sure = 0.5 + 0.5 * min(score, 1.0) * min(margin / 0.2, 1.0)
    return round(min(sure, 0.5 + 0.5 * min(words * 1.3, 1.0)), 3)


def _choices(board: Board, bucket: Callable[[KeyFamily], int]) -> list[Choice]:
    """Return the pairs that are best for both sides, the widest margin first."""
    buckets: dict[int, tuple[list[KeyFamily], list[KeyFamily]]] = defaultdict(lambda: ([], []))
    for family in board.stored:
        buckets[bucket(family)][0].append(family)
    for family in board.wanted:
        buckets[bucket(family)][1].append(family)
    names = {family.template for family in board.stored} & {family.template for family in board.wanted}
    found: list[Choice] = []
    for olds, news in buckets.values():
        if olds and news and board.effort.allows(len(olds) * len(news), (*olds, *news)):
            found += _best_pairs(board, olds, news, names)
    return sorted(found, key=lambda choice: -choice.margin)


def _best_pairs(
    board: Board, olds: Sequence[KeyFamily], news: Sequence[KeyFamily], names: set[str]
) -> list[Choice]:
    def score(old: KeyFamily, new: KeyFamily) -> float:
        value = board.likeness.score(old.template, new.template)
        if old.template != new.template and (old.template in names or new.template in names):
            value -= _OWN_NAME
        return value - _TURNED if is_turned(old, new) else value

    if len(olds) == len(news) == 1:
        return [Choice(score(olds[0], news[0]), ALONE, olds[0], news[0])]
    table = [[score(old, new) for new in news] for old in olds]
    columns = list(zip(*table, strict=True))
    found = []
    for row, scores in enumerate(table):
        best = max(range(len(scores)), key=scores.__getitem__)
        rival = max(
            [value for place, value in enumerate(scores) if place != best]
            + [value for place, value in enumerate(columns[best]) if place != row]
        )
        if scores[best] > rival:
            found.append(Choice(scores[best], scores[best] - rival, olds[row], news[best]))
    taken = {id(choice.old) for choice in found}
    for row, column, margin in _assigned(table):
        if id(olds[row]) not in taken:
            found.append(Choice(table[row][column], margin, olds[row], news[column]))
    return found


def _assigned(table: Sequence[Sequence[float]]) -> list[tuple[int, int, float]]:
    """Return (row, column, margin) of the best way to give each row a column of its own.

    A name that says nothing may be as good for two others: then it is theirs that decide. The margin of a pair is what
    the best way without it costs.
    """
    size = len(table)
    if not 1 < size <= _MOST_ASSIGNED or size != len(table[0]):
        return []
    ways = [
        (sum(table[row][column] for row, column in enumerate(way)), way) for way in permutations(range(size))
    ]
    total, best = max(ways)
    return [
        (row, column, total - max(other for other, way in ways if way[row] != column))
        for row, column in enumerate(best)
    ]
