"""Experts one by one here, in one tensor there: stack and unstack, perhaps with gate and up joined."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from shardload.diagnosis.pairing.board import Link
from shardload.diagnosis.pairing.fused import adds_up, leaf_of, pairs_of, roles_in
from shardload.diagnosis.pairing.layouts import HALVES, telling_segment
from shardload.diagnosis.pairing.words import words_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily, Shape
    from shardload.keys import Indices

_CLEAR = 0.05


_ROLES = frozenset({"gate", "up", "down", "q", "k", "v", "o", "qkv"})


class _Found(NamedTuple):
    score: float
    tall: KeyFamily
    flat: tuple[KeyFamily, ...]
    counted: int
    dim: int
    turned: bool
    spelled: bool


def pair_stacked(board: Board) -> None:
    """Link numbered families with the tensor that has one more dimension, the best match of names first."""
    for stacks in (True, False):
        while True:
            found = sorted(_candidates(board, stacks=stacks), key=lambda item: -item.score)
            rivals = _rivals(found)
            clear = [
                (item, rival)
                for item, rival in zip(found, rivals, strict=True)
                if rival is None or item.score - rival >= _CLEAR
            ]
            if not clear:
                break
            board.add(*[_link(item, rival, stacks=stacks) for item, rival in clear])


def _link(chosen: _Found, rival: float | None, *, stacks: bool) -> Link:
    stored, wanted = (chosen.flat, (chosen.tall,)) if stacks else ((chosen.tall,), chosen.flat)
    margin = 1.0 if rival is None else chosen.score - rival
    return Link(
        "stack" if stacks else "unstack",
        stored,
        wanted,
        confidence=round(0.5 + 0.49 * min(max(chosen.score, 0) / 0.8, 1) * min(margin / 0.1, 1), 3),
        margin=round(min(margin, 1.0), 3),
        dim=chosen.dim,
        counted=chosen.counted,
        turned=chosen.turned,
        unproven=HALVES if len(chosen.flat) > 1 and not chosen.spelled else "",
    )


def _rivals(found: Sequence[_Found]) -> list[float | None]:
    """Return for each candidate, the best first, the score of the best other one that shares a family with it."""
    best: dict[int, list[_Found]] = defaultdict(list)
    for item in found:
        for family in (item.tall, *item.flat):
            if len(best[id(family)]) < 2:
                best[id(family)].append(item)
    return [
        max(
            (
                other.score
                for family in (item.tall, *item.flat)
                for other in best[id(family)]
                if other is not item
            ),
            default=None,
        )
        for item in found
    ]


_Layers = dict[tuple[object, int, str], list[tuple["KeyFamily", int]]]


def _candidates(board: Board, *, stacks: bool) -> Iterator[_Found]:
    flats, talls = (board.stored, board.wanted) if stacks else (board.wanted, board.stored)
    sizes = {(len(shape), shape[0]) for tall in talls if (shape := tall.shape)}
    layers = _layers(flats, sizes)
    pairs = {place: _siblings(members) for place, members in layers.items()}
    for tall in talls:
        shape = tall.shape
        if shape is None or len(shape) < 2:
            continue
        place = tall.index, shape[0], leaf_of(tall.template)
        members = layers.get(place, [])
        together = pairs.get(place, [])
        count = sum(len(named) * (len(named) - 1) for _, named in together)
        if not board.effort.allows(len(members) + count, (tall,)):
            continue
        for flat, counted in members:
            yield from _alone(board, tall, flat, counted, shape, stacks=stacks)
        for counted, siblings in together:
            for pair in pairs_of(siblings):
                yield from _together(board, tall, pair, counted, shape, stacks=stacks)


def _siblings(members: Sequence[tuple[KeyFamily, int]]) -> list[tuple[int, list[KeyFamily]]]:
    by_place: dict[tuple[int, str], list[KeyFamily]] = defaultdict(list)
    for flat, counted in members:
        by_place[(counted, _parent(flat, counted))].append(flat)
    return [(counted, siblings) for (counted, _), siblings in by_place.items()]


def _layers(flats: Sequence[KeyFamily], sizes: Container[tuple[int, int]]) -> _Layers:
    """Return families by their other indices and by how far one of their indices counts.

    `sizes` are the numbers of dimensions, and the first of them, of the tensors that are looked for.
    """
    layers: _Layers = defaultdict(list)
    for flat in flats:
        for counted in range(flat.arity if flat.shape is not None else 0):
            count = 1 + max(indices[counted] for indices in flat.members)
            height = _height(flat, counted) if (len(flat.shape or ()) + 1, count) in sizes else 0
            if height:
                rest = frozenset((*i[:counted], *i[counted + 1 :]) for i in flat.members)
                layers[(rest, height, leaf_of(flat.template))].append((flat, counted))
    return layers


def _height(flat: KeyFamily, counted: int) -> int:
    """Return how far an index position counts, if it is 0, 1, 2, … for all other indices; else 0."""
    numbers: dict[Indices, set[int]] = defaultdict(set)
    for indices in flat.members:
        rest = (*indices[:counted], *indices[counted + 1 :])
        numbers[rest].add(indices[counted])
    heights = {len(found) for found in numbers.values()}
    height = heights.pop() if len(heights) == 1 else 0
    return height if height and all(found == set(range(height)) for found in numbers.values()) else 0


def _parent(flat: KeyFamily, counted: int) -> str:
    return "{}".join(flat.template.split("{}")[: counted + 1])


def _alone(
    board: Board, tall: KeyFamily, flat: KeyFamily, counted: int, shape: Shape, *, stacks: bool
) -> Iterator[_Found]:
    own = flat.shape or ()
    if sorted(own) != sorted(shape[1:]):
        return
    score = _score(board, tall, (flat,), counted, stacks=stacks)
    if own == shape[1:]:
        yield _Found(score, tall, (flat,), counted, 0, turned=False, spelled=True)
    elif len(own) == 2 and own[::-1] == shape[1:]:
        yield _Found(score - 0.2, tall, (flat,), counted, 0, turned=True, spelled=True)


def _together(
    board: Board,
    tall: KeyFamily,
    pair: tuple[KeyFamily, ...],
    counted: int,
    shape: Shape,
    *,
    stacks: bool,
) -> Iterator[_Found]:
    roles = roles_in(telling_segment(tall.template))
    words = [set(words_of(telling_segment(flat.template))) for flat in pair]
    named = [role in own for role, own in zip(roles or ("gate", "up"), words, strict=False)]
    if not all(one or (any(named) and not own & _ROLES) for one, own in zip(named, words, strict=False)):
        return
    spelled = len(roles) == 2 and all(named)  # where one name says nothing, it is the other half
    for turned in (False, True):
        parts = [(flat.shape or ())[:: -1 if turned else 1] for flat in pair]
        for dim in range(len(shape) - 1):
            if adds_up(shape[1:], parts, dim):
                score = _score(board, tall, pair, counted, stacks=stacks)
                score += (0.3 if spelled else 0) - (0.2 if turned else 0)
                yield _Found(score, tall, pair, counted, dim + 1, turned, spelled)
                break


def _score(board: Board, tall: KeyFamily, flat: Sequence[KeyFamily], counted: int, *, stacks: bool) -> float:
    total = 0.0
    for family in flat:
        name = without_index(family.template, counted)
        old, new = (name, tall.template) if stacks else (tall.template, name)
        total += board.likeness.score(old, new)
        total -= 0.4 * _other_counters(old, new)
    return total / len(flat)


def without_index(template: str, position: int) -> str:
    """Return a template without one of its `{}`."""
    segments = template.split(".")
    places = [place for place, segment in enumerate(segments) if segment == "{}"]
    del segments[places[position]]
    return ".".join(segments)


def _other_counters(old: str, new: str) -> int:
    """Return how many placeholders of two templates count different things: layers here, experts there."""
    count = 0
    one, two = old.split("."), new.split(".")
    ones = [words_of(one[place - 1]) for place, segment in enumerate(one) if segment == "{}" and place]
    twos = [words_of(two[place - 1]) for place, segment in enumerate(two) if segment == "{}" and place]
    for before, after in zip(ones, twos, strict=False):
        count += not set(before) & set(after)
    return count
