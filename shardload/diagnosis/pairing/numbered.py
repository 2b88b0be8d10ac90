"""Numbers that differ: layers counted from 1, and parts of a Sequential that have names on the other side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from shardload.diagnosis.pairing.renaming import pair, pair_renamed

if TYPE_CHECKING:
    from collections.abc import Container, Hashable

    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily

_SIDES: tuple[Literal["stored", "wanted"], ...] = ("stored", "wanted")
_MOST_NAMES = 8  # numbers that may be names: a Sequential of more parts is a list of layers


def pair_shifted(board: Board) -> None:
    """Link families whose indices differ by one constant."""
    pair(board, _from_zero, least=0.3)


def _from_zero(family: KeyFamily) -> Hashable:
    if not family.arity:
        return id(family)  # alone in its bucket
    return family.from_zero


def pair_named_parts(board: Board) -> None:
    """Treat numbers as names where that finds partners: `mlp.0` and `mlp.2` for `mlp.fc1` and `mlp.fc2`.

    First the numbers that the other side's names do without, then all that may be names: a list of few layers may
    have layers of several kinds. What the other side may have as a whole stays whole.
    """
    for akin in (True, False, False):
        changed = False
        for side in _SIDES:
            here, others = (board.stored, board.wanted)[:: 1 if side == "stored" else -1]
            there = {family.unordered for family in others}
            for family in list(here):
                parts = _as_names(family, there, akin=akin) if family.unordered not in there else []
                if parts:
                    board.replace(side, family, parts)
                    changed = True
        if changed:
            board.likeness.rank_open(board.stored, board.wanted)
            pair_renamed(board)


def _as_names(family: KeyFamily, there: Container[Hashable], *, akin: bool) -> list[KeyFamily]:
    """Return the parts of a family whose last number is a name; with `akin`, the last after which one is `there`."""
    for place in reversed(range(family.arity)):
        if len({indices[place] for indices in family.members}) <= _MOST_NAMES:
            parts = family.with_literal(place)
            if not akin or any(part.unordered in there for part in parts):
                return parts
    return []
