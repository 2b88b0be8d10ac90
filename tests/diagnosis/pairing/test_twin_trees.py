"""Whole subtrees that are built alike, and what is left in blocks whose other tensors have each other."""

import re

import pytest

from shardload.diagnosis.pairing.board import Board
from shardload.diagnosis.pairing.key_family import families_of
from shardload.diagnosis.pairing.twin_trees import pair_twin_trees
from tests.diagnosis.headers import case_of, cures, keys

BLOCK = {
    "q_proj": (4, 4), "k_proj": (4, 4), "v_proj": (4, 4), "out_proj": (4, 4), "fc1": (8, 4), "fc2": (4, 8),
    "norm1": (4,), "norm2": (4,), "scale": (1,),
}  # fmt: skip


def tower(path, names=None):
    found = {}
    for name, shape in BLOCK.items():
        found |= keys(shape, f"{path}.layers.{{}}.{(names or {}).get(name, name)}.weight", 2)
    return found


def made_from(case):
    table = case.solution.key_map.map_headers(dict(case.stored)).tensors
    return {key: ref.name for key, ref in table.items() if key in case.slots}


def test_two_towers_that_are_built_alike_keep_their_places():
    stored = tower("video_tower.vision_model") | tower("image_tower.vision_model")
    wanted = tower("model.image_tower") | tower("model.video_tower")
    case = case_of(stored, wanted)
    assert cures(case)
    assert all(key.split(".")[1] == name.split(".")[0] for key, name in made_from(case).items())


def test_a_tree_without_a_rival_is_left_to_its_names():
    stored, wanted = (families_of(tower(path)) for path in ("video_tower", "model.video_tower"))
    board = Board.of(stored, wanted)
    pair_twin_trees(board)
    assert not board.links


@pytest.mark.parametrize("names", [("first", "second"), ("student", "teacher")])
def test_two_towers_of_other_names_are_not_told_apart(names):
    stored = tower("video_tower") | tower("image_tower")
    wanted = tower(f"model.{names[0]}") | tower(f"model.{names[1]}")
    assert made_from(case_of(stored, wanted)) == {}


def test_a_strange_name_in_a_block_takes_nothing_with_it():
    stored = {key.replace("layers", "blocks"): shape for key, shape in tower("a", {"v_proj": "zulu"}).items()}
    case = case_of(stored, tower("a"))
    assert cures(case)
    (guess,) = [link for link in case.solution.board.links if "zulu" in link.stored[0].template]
    assert guess.unproven
    assert guess.confidence < 0.95


def test_a_strange_name_that_fits_two_places_leaves_the_other_to_the_name_that_says_it():
    stored = {key.replace("layers", "blocks"): shape for key, shape in tower("a", {"v_proj": "zulu"}).items()}
    stored = {key.replace("out_proj", "output.dense"): shape for key, shape in stored.items()}
    wanted = tower("a", {name: f"attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")})
    stored = {
        re.sub(r"\b(q_proj|k_proj|zulu|output)\b", r"attention.\1", key): shape
        for key, shape in stored.items()
    }
    case = case_of(stored, wanted)
    assert cures(case)
    made = made_from(case)
    assert made["a.layers.1.attn.v_proj.weight"] == "a.blocks.1.attention.zulu.weight"
    assert made["a.layers.1.attn.out_proj.weight"] == "a.blocks.1.attention.output.dense.weight"


def test_two_towers_with_other_names_inside_keep_their_places():
    changes = {"fc1": "alpha"}
    stored = tower("video_tower.vision_model", changes) | tower("image_tower.vision_model", changes)
    case = case_of(stored, tower("model.image_tower") | tower("model.video_tower"))
    assert all(key.split(".")[1] == name.split(".")[0] for key, name in made_from(case).items())
    assert len(made_from(case)) >= 32


def test_of_two_strange_names_neither_is_guessed():
    stored = tower("a", {"v_proj": "zulu", "k_proj": "kilo"})
    case = case_of(stored, tower("a"))
    assert {key.split(".")[3] for key, name in made_from(case).items() if key != name} == set()


def test_experts_whose_gate_has_a_strange_name():
    stored = {}
    for name, shape in {"tango": (6, 4), "w3": (6, 4), "w2": (4, 6)}.items():
        stored |= keys(shape, f"layers.{{}}.experts.{{}}.{name}.weight", 3, 2)
    wanted = keys((2, 12, 4), "layers.{}.experts.gate_up_proj", 3) | keys(
        (2, 4, 6), "layers.{}.experts.down_proj", 3
    )
    case = case_of(stored, wanted)
    assert cures(case)
    assert any(link.unproven for link in case.solution.board.links)
    twin = {key.replace("w3", "zulu"): shape for key, shape in stored.items()}
    assert not cures(case_of(twin, wanted))


def test_an_output_beside_the_embedding_is_the_head_and_no_second_name_of_it():
    stored = {"tok_embeddings.weight": (9, 4), "output.weight": (9, 4)}
    wanted = {"model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}
    assert made_from(case_of(stored, wanted)) == dict(zip(wanted, stored, strict=True))


def test_in_and_out_are_the_first_and_the_second_of_two_layers():
    stored = {"adapter.w_in.weight": (8, 4), "adapter.w_out.weight": (8, 8), "norm.weight": (4,)}
    wanted = {"projector.linear_1.weight": (8, 4), "projector.linear_2.weight": (8, 8), "norm.weight": (4,)}
    assert made_from(case_of(stored, wanted)) == dict(zip(wanted, stored, strict=True))


@pytest.mark.parametrize("turned", [False, True])
def test_wq_is_unproven_in_either_direction(turned):
    sides = [
        {"a.wq.weight": (4, 4), "a.norm.weight": (4,)},
        {"a.q_proj.weight": (4, 4), "a.norm.weight": (4,)},
    ]
    case = case_of(*(reversed(sides) if turned else sides))
    assert [link.unproven for link in case.solution.board.links] == [
        "whether the rows of q and k are permuted for another rotary layout"
    ]
