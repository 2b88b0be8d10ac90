"""Families that match by name where one side has layers or shapes that the other lacks."""

from __future__ import annotations

from shardload.diagnosis.pairing.unequal import pair_other_layers, pair_shape_mismatches
from tests.diagnosis.headers import keys
from tests.diagnosis.pairing.families import board_of, links


def test_the_layers_that_both_sides_have_are_linked():
    board = board_of(keys((4, 4), "h.{}.attn.q.weight", 3), keys((4, 4), "layers.{}.attn.q_proj.weight", 2))
    pair_other_layers(board)
    assert links(board) == [("rename", ["h.{}.attn.q.weight"], ["layers.{}.attn.q_proj.weight"])]
    assert [family.names for family in board.stored] == [["h.2.attn.q.weight"]]


def test_lists_that_begin_at_different_numbers_are_not_linked_by_equal_ones():
    stored = keys((4, 4), "h.{}.attn.q.weight", range(1, 4))
    board = board_of(stored, keys((4, 4), "layers.{}.attn.q_proj.weight", 3))
    pair_other_layers(board)
    assert not board.links


def test_a_transpose_of_the_same_name_is_linked_in_the_layers_of_both():
    board = board_of(keys((4, 6), "h.{}.fc.weight", 2), keys((6, 4), "h.{}.fc.weight", 3))
    pair_other_layers(board)
    assert [(link.kind, link.shape_mismatch) for link in board.links] == [("transpose", False)]


def test_shapes_that_differ_are_marked():
    board = board_of({"wte.embed_tokens.weight": (9, 4)}, {"model.embed_tokens.weight": (7, 4)})
    pair_shape_mismatches(board)
    assert [(link.kind, link.shape_mismatch) for link in board.links] == [("rename", True)]
