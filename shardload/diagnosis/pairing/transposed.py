"""Square matrices, which show no mismatch, are transposed like their neighbours: Conv1D here, Linear there."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.board import Link

if TYPE_CHECKING:
    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily

_TOGETHER = 2  # matrices of one block that have to be turned before it is sure that squares are
_LONE = 0.8
DOUBT = "whether square matrices are turned as their neighbours are"


def turn_squares(board: Board) -> None:
    """Transpose square weights where all other matrices of their module class in the block are transposed.

    Without known classes all neighbours decide, and the link says that this is unproven.
    """
    _doubt_lone(board)
    turned: dict[str, set[str]] = defaultdict(set)
    straight: dict[str, set[str]] = defaultdict(set)
    count: Counter[str] = Counter()
    squares: list[tuple[str, str, Link | None, KeyFamily]] = []
    for link, old, new in _matrices(board):
        shape = new.shape
        if shape is None or len(shape) != 2:
            continue
        block, kind = _block(new.template), _class_of(board, new)
        if shape[0] == shape[1]:
            squares.append((block, kind, link, old))
        elif link is not None and link.kind == "transpose":
            turned[block].add(kind)
            count[block] += 1
        else:
            straight[block].add(kind)
    places = {id(link): place for place, link in enumerate(board.links)}
    alone: set[int] = set()
    for block, kind, link, old in squares:
        if kind not in turned[block] or kind in straight[block]:
            continue
        doubt = DOUBT if kind == "?" or count[block] < _TOGETHER else ""
        if link is None:
            alone.add(id(old))
            board.links.append(Link("transpose", (old,), (old,), 0.96, unproven=doubt))
        else:
            board.links[places[id(link)]] = replace(link, kind="transpose", unproven=link.unproven or doubt)
    board.exact = [family for family in board.exact if id(family) not in alone]


def _doubt_lone(board: Board) -> None:
    """Lower the confidence of a transposed matrix without a transposed neighbour: code transposes all or none."""
    blocks = Counter(_block(link.wanted[0].template) for link in board.links if link.kind == "transpose")
    for place, link in enumerate(board.links):
        if link.kind == "transpose" and blocks[_block(link.wanted[0].template)] < _TOGETHER:
            board.links[place] = replace(link, confidence=min(link.confidence, _LONE))


def _matrices(board: Board) -> list[tuple[Link | None, KeyFamily, KeyFamily]]:
    found: list[tuple[Link | None, KeyFamily, KeyFamily]] = [
        (link, link.stored[0], link.wanted[0])
        for link in board.links
        if link.kind in {"rename", "transpose"} and not link.shape_mismatch
    ]
    found += [(None, family, family) for family in board.exact]
    return [item for item in found if item[2].template.endswith(".weight")]


def _block(template: str) -> str:
    """Return the template up to its last number: the layer."""
    head, found, _ = template.rpartition("{}")
    return head if found else ""


def _class_of(board: Board, family: KeyFamily) -> str:
    """Return the class of the module that holds a family, or "?"."""
    key = family.key(next(iter(family.members)))
    return board.module_classes.get(key.rpartition(".")[0], "?")
