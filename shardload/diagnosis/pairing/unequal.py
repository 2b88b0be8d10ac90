"""Families that match by name and differ in their layers or in their shapes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.board import Link
from shardload.diagnosis.pairing.layouts import layout_doubt
from shardload.diagnosis.pairing.renaming import is_turned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily

_SURE = 0.75
_CLEAR = 0.12


def pair_other_layers(board: Board) -> None:
    """Link families of equal shape by name where one side has layers that the other lacks."""
    _turn_namesakes(board)
    _pair(board, same_shape=True)


def pair_shape_mismatches(board: Board) -> None:
    """Link families by name whose shapes differ: the names are cured, the shapes are reported."""
    _pair(board, same_shape=False)


def _turn_namesakes(board: Board) -> None:
    """Link families of one name that are each other's transpose in the layers that both sides have."""
    there = {family.template: family for family in board.wanted}
    for old in list(board.stored):
        new = there.get(old.template)
        common = [indices for indices in old.members if new is not None and indices in new.members]
        if new and common and all(old.members[i] == new.members[i][::-1] for i in common):
            _link(board, old, new, common, 1.0, 1.0)


def _pair(board: Board, *, same_shape: bool) -> None:
    groups: dict[object, tuple[list[KeyFamily], list[KeyFamily]]] = defaultdict(lambda: ([], []))
    namesakes = {family.template for family in board.stored} & {family.template for family in board.wanted}
    for side, families in enumerate((board.stored, board.wanted)):
        for family in families:
            if family.template not in namesakes:
                shape = family.shape
                groups[(family.arity, shape if same_shape else len(shape or ()))][side].append(family)
    for olds, news in groups.values():
        if not (olds and news and board.effort.allows(len(olds) * len(news), (*olds, *news))):
            continue
        taken: set[int] = set()
        for old in olds:
            new, score, margin = _best(board, old, news)
            if new is None or score < _SURE or margin < _CLEAR or _best_old(board, new, olds) is not old:
                continue
            common = [indices for indices in old.members if indices in new.members]
            if min(old.members) != min(new.members):
                continue  # counted from another number: equal numbers are not the same layer
            if common and id(new) not in taken:
                taken.add(id(new))
                _link(board, old, new, common, min(score, 1.0), margin)


def _link(
    board: Board,
    old: KeyFamily,
    new: KeyFamily,
    common: Sequence[tuple[int, ...]],
    score: float,
    margin: float,
) -> None:
    rest = [indices for indices in old.members if indices not in new.members]
    lacking = [indices for indices in new.members if indices not in old.members]
    before, after = old.where(common), new.where(common)
    turned = is_turned(before, after) and before.unordered == after.unordered
    board.replace("stored", old, [before, old.where(rest)] if rest else [before])
    board.replace("wanted", new, [after, new.where(lacking)] if lacking else [after])
    board.add(
        Link(
            "transpose" if turned else "rename",
            (before,),
            (after,),
            confidence=round(0.5 + 0.45 * score * min(margin / 0.3, 1), 3),
            margin=margin,
            shape_mismatch=not turned and before.signature != after.signature,
            unproven=layout_doubt(before, after),
        )
    )


def _best(board: Board, old: KeyFamily, news: Sequence[KeyFamily]) -> tuple[KeyFamily | None, float, float]:
    scored = sorted(
        ((board.likeness.score(old.template, new.template), place) for place, new in enumerate(news)),
        reverse=True,
    )
    if not scored:
        return None, 0.0, 0.0
    margin = scored[0][0] - scored[1][0] if len(scored) > 1 else 1.0
    return news[scored[0][1]], scored[0][0], margin


def _best_old(board: Board, new: KeyFamily, olds: Sequence[KeyFamily]) -> KeyFamily:
    return max(olds, key=lambda old: board.likeness.score(old.template, new.template))
