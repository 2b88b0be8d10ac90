"""Numbers that differ: layers counted from 1, and parts of a Sequential that have names on the other side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.renaming import pair, pair_renamed

if TYPE_CHECKING:
    from collections.abc import Hashable

    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily

_MOST_NAMES = 8  # numbers that may be names: a Sequential of more parts is a list of layers


def pair_shifted(board: Board) -> None:
    """Link families whose indices differ by one constant."""
    pair(board, _from_zero, least=0.3)


def _from_zero(family: KeyFamily) -> Hashable:
    if not family.arity:
        return id(family)  # alone in its bucket
    return family.from_zero


def pair_named_parts(board: Board) -> None:
    """Treat numbers as names where that finds partners: `mlp.0` and `mlp.2` for `mlp.fc1` and `mlp.fc2`."""
    for _ in range(2):
        changed = False
        for side in ("stored", "wanted"):
            for family in list(getattr(board, side)):
                parts = _as_names(family)
                if parts:
                    board.replace(side, family, parts)
                    changed = True
        if not changed:
            return
        pair_renamed(board)


def _as_names(family: KeyFamily) -> list[KeyFamily]:
    for place in reversed(range(family.arity)):
        if len({indices[place] for indices in family.members}) <= _MOST_NAMES:
            return family.with_literal(place)
    return []
