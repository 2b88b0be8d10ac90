"""Experts one by one on one side, in one tensor on the other."""

from __future__ import annotations

import pytest

from shardload.diagnosis.pairing.layouts import HALVES
from shardload.diagnosis.pairing.stacked import pair_stacked, without_index
from tests.diagnosis.headers import keys
from tests.diagnosis.pairing.families import board_of, links

ONE = "layers.{}.mlp.experts.{}."
ALL = "layers.{}.mlp.experts."


@pytest.mark.parametrize("stacks", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_experts_become_one_tensor_and_apart(stacks, turned):
    flat = keys((6, 4), ONE + "down_proj.weight", 2, 3)
    tall = keys((3, 4, 6) if turned else (3, 6, 4), ALL + "down_proj", 2)
    board = board_of(flat, tall) if stacks else board_of(tall, flat)
    pair_stacked(board)
    (link,) = board.links
    assert link.kind == ("stack" if stacks else "unstack")
    assert (link.counted, link.turned, link.unproven) == (1, turned, "")


@pytest.mark.parametrize(("name", "unproven"), [("gate_up_proj", ""), ("w13", ""), ("wi", HALVES)])
def test_gate_and_up_are_joined_in_that_order(name, unproven):
    flat = keys((6, 4), ONE + "up_proj.weight", 2, 3) | keys((6, 4), ONE + "gate_proj.weight", 2, 3)
    board = board_of(flat, keys((3, 12, 4), ALL + name, 2))
    pair_stacked(board)
    assert links(board) == [("stack", [ONE + "gate_proj.weight", ONE + "up_proj.weight"], [ALL + name])]
    (link,) = board.links
    assert (link.dim, link.unproven) == (1, unproven)


def test_numbers_with_a_hole_and_other_heights_are_no_stack():
    holes = keys((6, 4), ONE + "down_proj.weight", 2, [0, 1, 3])
    for stored, height in ((holes, 3), (keys((6, 4), ONE + "down_proj.weight", 2, 3), 4)):
        board = board_of(stored, keys((height, 6, 4), ALL + "down_proj", 2))
        pair_stacked(board)
        assert not board.links


def test_layers_are_not_stacked_where_experts_are_meant():
    # As many layers as experts: the name of what is counted decides.
    flat = keys((6, 4), ONE + "down_proj.weight", 3, 3)
    board = board_of(flat, keys((3, 6, 4), ALL + "down_proj", 3))
    pair_stacked(board)
    (link,) = board.links
    assert link.counted == 1


def test_a_template_without_one_of_its_numbers():
    assert without_index("a.{}.b.{}.c", 0) == "a.b.{}.c"
    assert without_index("a.{}.b.{}.c", 1) == "a.{}.b.c"
