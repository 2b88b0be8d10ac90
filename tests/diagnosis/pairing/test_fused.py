"""Fused tensors: parts whose sizes add up, in the order that the name of the whole spells."""

from __future__ import annotations

import pytest

from shardload.diagnosis.pairing.fused import adds_up, joining_dim, leaf_of, pair_fused, pairs_of, roles_in
from shardload.diagnosis.pairing.layouts import HALVES, HEADS
from tests.diagnosis.headers import keys
from tests.diagnosis.pairing.families import board_of, family, links

BLOCK = "h.{}.attn."


@pytest.mark.parametrize("splits", [True, False])
def test_q_k_and_v_are_cut_out_or_joined_in_their_order(splits):
    whole = keys((16, 8), BLOCK + "qkv.weight", 3)
    parts = keys((4, 8), BLOCK + "v_proj.weight", 3) | keys((8, 8), BLOCK + "q_proj.weight", 3)
    parts |= keys((4, 8), BLOCK + "k_proj.weight", 3)
    board = board_of(whole, parts) if splits else board_of(parts, whole)
    pair_fused(board)
    names = [BLOCK + f"{name}_proj.weight" for name in "qkv"]
    one = [BLOCK + "qkv.weight"]
    assert links(board) == [("split", one, names) if splits else ("cat", names, one)]
    (link,) = board.links
    assert (link.dim, link.unproven) == (0, HEADS)  # heads may be interleaved: no shape tells


def test_a_name_that_spells_the_order_is_surer():
    parts = keys((6, 8), "mlp.{}.gate_proj.weight", 2) | keys((6, 8), "mlp.{}.up_proj.weight", 2)
    for name, unproven in (("gate_up_proj", ""), ("dense_h_to_4h", HALVES)):
        board = board_of(keys((12, 8), f"mlp.{{}}.{name}.weight", 2), parts)
        pair_fused(board)
        (link,) = board.links
        assert link.unproven == unproven
        assert [f.template for f in link.wanted] == ["mlp.{}.gate_proj.weight", "mlp.{}.up_proj.weight"]
    board = board_of(keys((12, 8), "mlp.{}.up_gate_proj.weight", 2), parts)
    pair_fused(board)
    assert [f.template for f in board.links[0].wanted] == ["mlp.{}.up_proj.weight", "mlp.{}.gate_proj.weight"]


def test_sizes_that_do_not_add_up_are_no_link():
    parts = keys((8, 8), BLOCK + "q.weight", 2)
    parts |= keys((4, 8), BLOCK + "k.weight", 2) | keys((4, 8), BLOCK + "v.weight", 2)
    board = board_of(keys((15, 8), BLOCK + "qkv.weight", 2), parts)
    pair_fused(board)
    assert not board.links


def test_a_bias_is_never_joined_from_weights():
    assert [leaf_of(name) for name in ("a.bias", "a.q_bias", "a.weight", "a.w")] == [
        "bias",
        "bias",
        "weight",
        "weight",
    ]


@pytest.mark.parametrize(
    ("segment", "roles"),
    [
        ("qkv", ("q", "k", "v")),
        ("gate_up_proj", ("gate", "up")),
        ("up_gate_proj", ("up", "gate")),
        ("kv_proj", ("k", "v")),
        ("q_proj", ("q",)),
        ("dense", ()),
    ],
)
def test_roles_that_a_name_spells(segment, roles):
    assert roles_in(segment) == roles


def test_shapes_add_up_along_one_dimension_only():
    assert adds_up((6, 4), [(2, 4), (4, 4)], 0)
    assert adds_up((6, 4), [(6, 1), (6, 3)], 1)
    assert not adds_up((6, 4), [(2, 4), (4, 4)], 1)
    assert not adds_up((6, 4), [(2, 4), (3, 4)], 0)
    assert not adds_up((6, 4), [(6,), (6,)], 0)
    assert joining_dim(family("w.{}", (6, 4), 2), [family("a.{}", (6, 1), 2), family("b.{}", (6, 3), 2)]) == 1
    assert (
        joining_dim(family("w.{}", (6, 4), 2), [family("a.{}", (5, 1), 2), family("b.{}", (6, 3), 2)]) is None
    )


def test_pairs_come_in_both_orders():
    one, two, three = (family(name, (1,)) for name in "abc")
    assert [(a.template, b.template) for a, b in pairs_of([one, two, three])] == [
        ("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")
    ]  # fmt: skip
