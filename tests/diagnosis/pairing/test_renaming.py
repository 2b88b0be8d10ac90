"""Families of equal shapes are paired by their names, and not at all where no name decides."""

from __future__ import annotations

import pytest

from shardload.diagnosis.pairing.renaming import ALONE, is_turned, pair_renamed
from tests.diagnosis.headers import keys
from tests.diagnosis.pairing.families import board_of, family, links


def test_names_decide_between_equal_shapes():
    stored = {
        name: shape
        for w in "qkvo"
        for name, shape in keys((8, 8), f"layers.{{}}.attention.w{w}.weight", 3).items()
    }
    wanted = {
        name: shape
        for w in "qkvo"
        for name, shape in keys((8, 8), f"model.layers.{{}}.self_attn.{w}_proj.weight", 3).items()
    }
    board = board_of(stored, wanted)
    pair_renamed(board)
    assert sorted(links(board)) == [
        ("rename", [f"layers.{{}}.attention.w{w}.weight"], [f"model.layers.{{}}.self_attn.{w}_proj.weight"])
        for w in "koqv"
    ]
    assert not board.stored
    assert all(0.5 <= link.confidence <= 1 for link in board.links)


def test_what_no_name_tells_apart_stays_open():
    board = board_of({"a.x1": (4, 4), "a.x2": (4, 4)}, {"b.y": (4, 4), "b.z": (4, 4)})
    pair_renamed(board)
    assert not board.links


@pytest.mark.parametrize("alone", [False, True])
def test_the_only_one_of_its_shape_is_paired_whatever_its_name_only_where_that_is_asked(alone):
    board = board_of({"zebra": (7, 5)}, {"giraffe": (7, 5)})
    pair_renamed(board, alone=alone)
    assert bool(board.links) is alone


def test_a_transpose_is_a_link_of_its_own_kind():
    board = board_of(keys((4, 6), "h.{}.mlp.c_fc.weight", 2), keys((6, 4), "h.{}.mlp.up_proj.weight", 2))
    pair_renamed(board)
    assert links(board) == [("transpose", ["h.{}.mlp.c_fc.weight"], ["h.{}.mlp.up_proj.weight"])]
    assert is_turned(family("a", (4, 6)), family("a", (6, 4)))
    assert not is_turned(family("a", (4, 4)), family("a", (4, 4)))


def test_the_rotary_layout_of_native_checkpoints_is_said_to_be_unproven():
    stored = keys((8, 8), "layers.{}.attention.wq.weight", 2)
    board = board_of(stored, keys((8, 8), "model.layers.{}.self_attn.q_proj.weight", 2))
    pair_renamed(board)
    (link,) = board.links
    assert "rotary" in link.unproven
    assert link.margin == min(ALONE, 1.0)


def test_a_namesake_of_another_shape_is_not_left_behind_for_a_pair_that_is_not_surer():
    stored, wanted = {"m.gating": (4,)}, {"m.gate": (4,)}
    free, taken = board_of(stored, wanted), board_of({**stored, "m.gate": (9,)}, wanted)
    for board in (free, taken):
        pair_renamed(board, least=0.8)
    assert links(free) == [("rename", ["m.gating"], ["m.gate"])]
    assert links(taken) == []
