"""Evidence: a link stays only where something speaks for it that speaks for no rival."""

from __future__ import annotations

import pytest

from shardload.diagnosis.pairing.evidence import withdraw_guesses
from shardload.diagnosis.pairing.key_family import families_of
from shardload.diagnosis.pairing.name import contradicts, name_of
from shardload.diagnosis.pairing.solution import solve
from tests.diagnosis.headers import keys
from tests.diagnosis.pairing.families import board_of, family, links


def solved(stored, wanted):
    return solve(families_of(stored), families_of(wanted))


def paired(board):
    return {link.stored[0].template: link.wanted[0].template for link in board.links}


@pytest.mark.parametrize(
    ("template", "telling", "leaf"),
    [
        ("layers.{}.self_attn.q_proj.weight", {"q"}, "weight"),
        ("h.{}.attn.c_attn.bias", {"qkv"}, "bias"),
        ("layers.{}.attention.dense.weight", {"attn"}, "weight"),
        ("norm.gamma", {"norm"}, "weight"),
        ("cls_token", {"class", "token"}, "weight"),
        ("{}", set(), "weight"),
    ],
)
def test_a_name_says_what_a_tensor_is(template, telling, leaf):
    assert (name_of(template).telling, name_of(template).leaf) == (telling, leaf)


@pytest.mark.parametrize(
    ("old", "new", "differ"),
    [
        ("norm.weight", "norm.bias", True),
        ("norm.gamma", "norm.weight", False),
        ("encoder.fc.weight", "decoder.fc.weight", True),
        ("encoder.fc.weight", "fc.weight", False),
        ("student.fc.weight", "teacher.fc.weight", True),
        ("model.fc.weight", "net.fc.weight", False),
    ],
)
def test_names_contradict_each_other(old, new, differ):
    assert contradicts(family(old, (4,)), family(new, (4,))) is differ


def test_a_move_that_is_proven_speaks_for_its_neighbours():
    stored = {
        "a.embed.weight": (9, 4),
        "a.q.weight": (4, 4),
        "b.patch.weight": (4, 3, 2, 2),
        "b.q.weight": (4, 4),
    }
    wanted = {key.replace("a.", "x.").replace("b.", "y."): shape for key, shape in stored.items()}
    board = solved(stored, wanted)
    assert paired(board) == {key: key.replace("a.", "x.").replace("b.", "y.") for key in stored}
    assert not any(link.unproven for link in board.links)


def test_the_last_of_a_list_of_layers_is_proposed_and_called_unproven():
    block = {"q_proj": (4, 4), "k_proj": (4, 4), "up_proj": (8, 4), "zebra": (5, 4)}
    stored = {key: s for name, s in block.items() for key in keys(s, f"layers.{{}}.{name}.weight", 2)}
    wanted = {key.replace("zebra", "giraffe"): shape for key, shape in stored.items()}
    board = solved(stored, wanted)
    (link,) = board.links
    assert "shape and place alone" in link.unproven
    assert link.confidence < 0.95


def test_a_layer_with_something_open_beside_it_keeps_its_strangers():
    block = {"q_proj": (4, 4), "zebra": (5, 4)}
    stored = {key: s for name, s in block.items() for key in keys(s, f"layers.{{}}.{name}.weight", 2)}
    wanted = {key.replace("zebra", "giraffe"): shape for key, shape in stored.items()}
    wanted |= keys((7,), "layers.{}.lacking", 2)
    assert links(solved(stored, wanted)) == []


def test_nothing_is_withdrawn_from_a_board_without_links():
    board = board_of({"a": (4,)}, {"b": (4,)})
    withdraw_guesses(board)
    assert (len(board.stored), len(board.wanted)) == (1, 1)
