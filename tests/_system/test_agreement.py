"""All ranks end a load alike: one rank's fault is every rank's error, and names the rank."""

from __future__ import annotations

import shutil

import pytest
import torch

from shardload import save
from shardload._system import agreement
from tests.distributed.faults import FAILS, Net
from tests.distributed.spawn import run_ranks

SOON = 5  # seconds in which all have to have ended


KINDS = {
    "missing": "NotFoundError",
    "corrupt": "CorruptError",
    "changed": "CorruptError",
    "memory": "MemoryLimitError",
    "mismatch": "MismatchError",
    "other": "RanksError",
    "random": None,
}


def run(folder, kinds):
    for kind in kinds:
        torch.manual_seed(0)
        save(Net(), folder / kind / "0", max_shard_size="3kB")
        other = Net().double() if kind == "other" else None
        if other is None:
            shutil.copytree(folder / kind / "0", folder / kind / "1")
        else:
            save(other, folder / kind / "1", max_shard_size="6kB")
    ranks = run_ranks("tests.distributed.faults", 2, ",".join(kinds), folder, timeout=180)
    said = "\n".join(rank.said[-2000:] for rank in ranks)
    return {
        kind: [line for rank in ranks for line in rank.lines if line["kind"] == kind] for kind in kinds
    }, said


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    lines, said = run(tmp_path_factory.mktemp("faults"), KINDS)
    assert all(len(each) == 2 for each in lines.values()), said
    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_end_alike(ended, kind):
    lines = ended[kind]
    assert [line["error"] for line in lines] == [KINDS[kind]] * 2, lines
    assert all(line["seconds"] < SOON for line in lines), lines
    assert all(line["state_kept"] for line in lines)
    if KINDS[kind]:
        assert all(line["as_before"] and line["on_meta"] for line in lines)


@pytest.mark.parametrize("kind", ["missing", "corrupt", "changed", "memory", "other"])
def test_a_fault_of_one_rank_names_it(ended, kind):
    lines = ended[kind]
    assert [line["rank"] for line in lines] == [FAILS] * 2
    assert all(f"rank {FAILS}: " in line["text"] for line in lines), lines
    assert lines[0]["text"] == lines[1]["text"]


def test_a_fault_of_all_ranks_names_none(ended):
    lines = ended["mismatch"]
    assert len({line["text"].splitlines()[0] for line in lines}) == 1
    assert [line["rank"] for line in lines] == [None] * 2


def test_what_a_class_draws_is_equal_on_all_ranks(ended):
    lines = ended["random"]
    assert lines[0]["extra"] == lines[1]["extra"]
    assert len({value for row in lines[0]["extra"] for value in row}) == 24


@pytest.mark.parametrize("kind", ["late", "killed"])
def test_a_rank_that_does_not_come_ends_the_others_in_time(tmp_path, kind):
    lines, said = run(tmp_path, [kind])
    first = lines[kind][0]
    assert first["error"] == "RanksError", said
    assert "rank 1 did not come within 3 seconds" in first["text"]
    assert first["as_before"]
    assert first["on_meta"]


def test_this_process_has_agreed_with_nobody():
    assert agreement._TURNS == {}
