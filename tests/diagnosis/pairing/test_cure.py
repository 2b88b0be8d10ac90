"""Cure: each kind of link becomes rules that make the wanted names and shapes of the stored headers."""

from __future__ import annotations

import pytest

from shardload.diagnosis.pairing.board import Link
from shardload.diagnosis.pairing.cure import Cure, shifted, with_offsets
from shardload.diagnosis.pairing.key_family import families_of
from tests.diagnosis.headers import keys, refs
from tests.diagnosis.pairing.families import board_of


def cured(stored, wanted, *links, exact=()):
    """Return what a cure of hand-made links makes of the headers: names and shapes."""
    board = board_of({**stored, **dict(exact)}, {**wanted, **dict(exact)})
    have = {f.template: f for f in families_of(stored)}
    want = {f.template: f for f in families_of(wanted)}
    board.add(
        *(
            Link(kind, tuple(have[t] for t in old), tuple(want[t] for t in new), 1.0, **more)
            for kind, old, new, more in links
        )
    )
    cure = Cure(board)
    table = cure.whole.map_headers(refs({**stored, **dict(exact)})).tensors
    return {name: tensor.shape for name, tensor in table.items()}, cure


L = "layers.{}."
EXPERTS = keys((6, 4), L + "e.{}.gate.w", 2, 3) | keys((6, 4), L + "e.{}.up.w", 2, 3)

CASES = {
    "rename": (keys((2,), "h.{}.a", 3), keys((2,), L + "b", 3), ["h.{}.a"], [L + "b"], {}),
    "transpose": (keys((2, 3), "h.{}.a", 3), keys((3, 2), L + "b", 3), ["h.{}.a"], [L + "b"], {}),
    "split": (
        keys((6, 4), L + "qkv", 2),
        keys((3, 4), L + "q", 2) | keys((1, 4), L + "k", 2) | keys((2, 4), L + "v", 2),
        [L + "qkv"],
        [L + "q", L + "k", L + "v"],
        {"dim": 0},
    ),
    "cat": (
        keys((6, 1), L + "a", 2) | keys((6, 3), L + "b", 2),
        keys((6, 4), L + "ab", 2),
        [L + "a", L + "b"],
        [L + "ab"],
        {"dim": 1},
    ),
    "stack": (
        keys((6, 4), L + "e.{}.w", 2, 3), keys((3, 6, 4), L + "e.w", 2), [L + "e.{}.w"], [L + "e.w"], {"counted": 1}
    ),
    "unstack": (
        keys((3, 6, 4), L + "e.w", 2), keys((6, 4), L + "e.{}.w", 2, 3), [L + "e.w"], [L + "e.{}.w"], {"counted": 1}
    ),
    "alias": (keys((2,), "a"), keys((2,), "b"), ["a"], ["b"], {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_the_rules_of_a_link_make_what_it_says(kind):
    stored, wanted, old, new, more = CASES[kind]
    made, cure = cured(stored, wanted, (kind, old, new, more), exact={"norm": (2,)}.items())
    assert made == {**wanted, **(stored if kind == "alias" else {}), "norm": (2,)}
    assert bool(cure.of(kind).rules) is (kind != "rename")  # renames are written together


@pytest.mark.parametrize("turned", [False, True])
def test_gate_and_up_are_stacked_and_joined_and_taken_apart(turned):
    tall = keys((3, 4, 12) if turned else (3, 12, 4), L + "e.gate_up", 2)
    more = {"dim": 2 if turned else 1, "counted": 1, "turned": turned}
    parts = [L + "e.{}.gate.w", L + "e.{}.up.w"]
    assert cured(EXPERTS, tall, ("stack", parts, [L + "e.gate_up"], more))[0] == tall
    assert cured(tall, EXPERTS, ("unstack", [L + "e.gate_up"], parts, more))[0] == EXPERTS


def test_what_is_dropped_is_gone():
    assert cured({"a": (1,), "b": (2,)}, {}, ("drop", ["a"], [], {}))[0] == {"b": (2,)}


def test_structure_follows_the_renames_and_second_names_come_last():
    stored = keys((6, 4), "h.{}.attn.qkv", 2) | keys((5,), "h.{}.n", 2)
    wanted = keys((6, 4), "m.{}.attn.out", 2) | keys((5,), "m.{}.n", 2) | keys((5,), "m.{}.again", 2)
    made, cure = cured(
        stored,
        wanted,
        ("alias", ["h.{}.n"], ["m.{}.again"], {}),
        ("rename", ["h.{}.n"], ["m.{}.n"], {}),
        ("rename", ["h.{}.attn.qkv"], ["m.{}.attn.out"], {}),
    )
    assert made == wanted
    assert cure.whole.rules[-1].op == "alias"


def test_layers_that_are_counted_from_another_number():
    stored, wanted = keys((2,), "h.{}.a", [1, 2, 3]), keys((2,), "h.{}.a", 3)
    board_links = ("rename", ["h.{}.a"], ["h.{}.a"], {"offset": (-1,)})
    assert cured(stored, wanted, board_links)[0] == wanted
    assert with_offsets("a.{}.b.{}", (0, -2)) == "a.{}.b.{-2}"
    assert with_offsets("a.{}", (3,)) == "a.{+3}"
    assert with_offsets("a.{}", ()) == "a.{}"
    assert shifted((4, 5), (0, -2)) == (4, 3)
