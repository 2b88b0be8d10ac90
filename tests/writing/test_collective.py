"""A model that lies over ranks is saved by all of them: the files of one process, or none."""

from __future__ import annotations

import json

import pytest
import torch

from shardload import open_checkpoint, save
from shardload.writing import collective
from tests.distributed.nets import NETS
from tests.distributed.spawn import run_ranks

CASES = [
    "fsdp2-2:Tied",
    "fsdp2-2:Uneven",
    "tp-2:Tied",
    "fsdp2-2:Renamed",
    "fsdp2-2:Buffers",
    "packed-2:Fused",
    "tp-2:Renamed:again",
]
OF_ONE_RANK = "fsdp2-2:Tied:extra"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saves")
    for name in {case.split(":")[1] for case in CASES} | {"Experts"}:
        torch.manual_seed(7)
        save(NETS[name](), folder / name, key_map=getattr(NETS[name], "key_map", None))
        config = {
            "tie_word_embeddings": name != "Uneven"
        }  # the last stage of a pipeline has the embedding for it
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def run(folder, world, cases):
    ranks = run_ranks("tests.distributed.saves", world, ",".join(cases), folder, timeout=180)
    return {
        case: [line for rank in ranks for line in rank.lines if line["case"] == case] for case in cases
    }, ranks


@pytest.fixture(scope="module")
def saved(folder):
    lines, ranks = run(folder, 2, [*CASES, OF_ONE_RANK])
    assert [rank.code for rank in ranks] == [0, 0], "\n".join(rank.said[-3000:] for rank in ranks)
    return lines


def equal(one, other, *, of_stages=False):
    first, second = open_checkpoint(one), open_checkpoint(other)
    extra = {"head.weight"} if of_stages else set()  # the last stage has the embedding as its head alone
    assert {name.removeprefix("old.") for name in first.tensors.keys() - second.tensors.keys()} == extra
    for name, ref in second.tensors.items():
        assert ref.dtype == first.tensors[name].dtype
        assert torch.equal(first.read(name), second.read(name)), name


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_what_one_process_saves(folder, saved, case):
    assert [line["error"] for line in saved[case]] == [None, None], saved[case]
    equal(folder / "out" / case, folder / case.split(":")[1])
    written = {path.name for path in (folder / "out" / case).iterdir()}
    assert set(saved[case][0]["files"]) == set(saved[case][1]["files"]) == written
    index = json.loads((folder / "out" / case / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1


def test_a_buffer_and_a_parameter_of_one_rank_alone_are_refused_by_name(folder, saved):
    lines = saved[OF_ONE_RANK]
    assert [line["error"] for line in lines] == ["RanksError"] * 2
    assert lines[0]["text"] == lines[1]["text"]
    assert "some ranks of the model have tensors of names that the others have not" in lines[0]["text"]
    assert "layers.0.scale: rank 1 of 0, 1" in lines[0]["text"]
    assert "extra: rank 1 of 0, 1" in lines[0]["text"]
    assert not (folder / "out" / OF_ONE_RANK).exists()


def test_four_ranks_of_two_kinds_experts_that_some_lack_and_stages(folder):
    """Stages of a pipeline make one checkpoint, and so do some of the ranks; torch has the groups it had before."""
    cases = ["fsdp2+tp-4:Tied", "hsdp-4:Tied", "experts-4:Experts", "fsdp2-2:Tied:some"]
    stages = ["pipeline+fsdp2-4:Tied", "pipeline+fsdp2-4:Renamed", "pipeline+tp-4:Buffers"]
    other = "pipeline+fsdp2-4:Tied:other"
    adapter = "pipeline+fsdp2-4:Tied:adapter"
    lines, ranks = run(folder, 4, [*cases, *stages, other, adapter])
    assert [rank.code for rank in ranks] == [0] * 4, "\n".join(rank.said[-3000:] for rank in ranks)
    for case in (*cases, *stages):
        assert [line["error"] for line in lines[case]] == [None] * 4, lines[case]
        assert {line.get("groups", 0) for line in lines[case]} == {0}
        equal(folder / "out" / case, folder / case.split(":")[1], of_stages=case in stages)
    assert [line["error"] for line in lines[other]] == ["RanksError"] * 4
    assert "different tensors of the name embed.weight" in lines[other][0]["text"]
    assert not (folder / "out" / other).exists()
    assert [line["error"] for line in lines[adapter]] == ["RanksError"] * 4
    said = [line["text"] for line in lines[adapter]]
    assert any("the tensors of the adapter differ from those of rank 0" in text for text in said), said
    assert not (folder / "out" / adapter).exists()


@pytest.mark.parametrize("trouble", ["full", "killed"])
def test_nothing_is_left_where_a_rank_fails(folder, trouble):
    case = f"fsdp2-2:Tied:{trouble}"
    lines, ranks = run(folder, 2, [case])
    first = lines[case][0]
    assert first["error"] == {"full": "NoSpaceError", "killed": "RanksError"}[trouble], (first, ranks[1].said)
    assert "rank 1: " in first["text"], first
    if trouble == "full":
        assert lines[case][1]["error"] == first["error"]
    else:
        assert "its process has ended" in first["text"]
    out = folder / "out" / case
    assert not out.exists() or not [
        path for path in out.iterdir() if path.suffix in (".safetensors", ".json")
    ]


def test_what_lies_over_no_ranks_is_held_as_it_is():
    weight = torch.zeros(2)
    held = collective.local({"a": weight, "b": weight})
    assert held["a"] is held["b"] is weight
