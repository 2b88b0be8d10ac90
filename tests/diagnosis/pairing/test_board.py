"""Board: what is open on both sides, and what a link closes."""

from __future__ import annotations

from shardload.diagnosis.pairing.board import Board, Link
from shardload.diagnosis.pairing.key_family import KeyFamily
from tests.diagnosis.pairing.families import board_of, family


def open_keys(board):
    return (
        sorted(name for f in board.stored for name in f.names),
        sorted(name for f in board.wanted for name in f.names),
        sorted(name for f in board.exact for name in f.names),
    )


def test_equal_names_and_shapes_are_not_open():
    board = board_of({"a": (1,), "b": (2,), "c": (3,)}, {"a": (1,), "b": (5,), "d": (3,)})
    assert open_keys(board) == (["b", "c"], ["b", "d"], ["a"])


def test_a_family_is_open_where_its_shapes_differ():
    stored = {f"l.{n}": (2,) for n in range(4)}
    board = board_of(stored, {**stored, "l.3": (5,), "l.4": (2,)})
    assert open_keys(board) == (["l.3"], ["l.3", "l.4"], ["l.0", "l.1", "l.2"])


def test_equal_numbers_of_families_that_begin_elsewhere_are_not_the_same_layer():
    stored = KeyFamily("l.{}", {(n,): (2,) for n in range(1, 5)})
    wanted = KeyFamily("l.{}", {(n,): (2,) for n in range(4)})
    board = Board.of([stored], [wanted])
    assert (len(open_keys(board)[0]), len(open_keys(board)[1]), board.exact) == (4, 4, [])


def test_a_link_closes_its_families_and_teaches():
    board = board_of({"x.a.p": (1,), "x.a.q": (2,)}, {"y.b.r": (1,), "y.b.s": (2,)})
    (one, two), (three, four) = board.stored, board.wanted
    before = board.likeness.score("x.a.q", "y.b.s")
    board.add(Link("rename", (one,), (three,), 1.0))
    assert (board.stored, board.wanted) == ([two], [four])
    assert board.likeness.score("x.a.q", "y.b.s") > before


def test_a_second_name_leaves_its_source_open():
    board = board_of({"a": (1,)}, {"b": (1,)})
    board.add(Link("alias", tuple(board.stored), tuple(board.wanted), 1.0))
    assert (len(board.stored), len(board.wanted)) == (1, 0)


def test_a_family_is_replaced_where_it_stands():
    board = board_of({"a": (1,), "l.0": (2,), "l.1": (2,), "z": (3,)}, {})
    parts = family("l.{}", (2,), 2).with_literal(0)
    board.replace("stored", board.stored[1], parts)
    assert [f.template for f in board.stored] == ["a", "l.0", "l.1", "z"]
