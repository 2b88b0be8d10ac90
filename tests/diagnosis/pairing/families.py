"""Families of keys from their names and shapes."""

from __future__ import annotations

from shardload.diagnosis.pairing.board import Board
from shardload.diagnosis.pairing.key_family import KeyFamily, families_of


def family(template: str, shape: tuple[int, ...], *counts: int) -> KeyFamily:
    """Return the family of a template whose numbers count from 0."""
    indices: list[tuple[int, ...]] = [()]
    for count in counts:
        indices = [(*before, number) for before in indices for number in range(count)]
    return KeyFamily(template, dict.fromkeys(indices, shape))


def board_of(stored, wanted) -> Board:
    """Return the board of two sets of keys with shapes."""
    return Board.of(families_of(stored), families_of(wanted))


def links(board: Board) -> list[tuple[str, list[str], list[str]]]:
    """Return kind, stored templates and wanted templates of each link."""
    return [
        (link.kind, [f.template for f in link.stored], [f.template for f in link.wanted])
        for link in board.links
    ]
