"""All ranks end a load alike: one rank's fault is every rank's error, and names the rank."""

from __future__ import annotations

import shutil

import pytest
import torch

from shardload import save
from shardload._system import agreement, turns
from tests.distributed.faults import FAILS, Net
from tests.distributed.spawn import run_ranks

SOON = 50  # looks at the store: a rank that waits pauses for 0.1 seconds between two


KINDS = {
    "missing": "NotFoundError",
    "corrupt": "CorruptError",
    "changed": "CorruptError",
    "memory": "MemoryLimitError",
    "mismatch": "MismatchError",
    "other": "RanksError",
    "values": "RanksError",
    "random": None,
    "unopened": "NotFoundError",
    "garbled": "CorruptError",
    "once-corrupt": "CorruptError",
    "late": "RanksError",
}
KILLED = ("early-killed", "unopened-killed", "killed", "once-killed")


def run(folder, kinds, world):
    for kind in kinds:
        torch.manual_seed(0)
        save(Net(), folder / kind / "0", max_shard_size="3kB")
        for rank in range(1, world):
            if kind == "other":
                save(Net().double(), folder / kind / str(rank), max_shard_size="6kB")
            else:
                shutil.copytree(folder / kind / "0", folder / kind / str(rank))
    ranks = run_ranks("tests.distributed.faults", world, ",".join(kinds), folder, timeout=180)
    said = "\n".join(rank.said[-2000:] for rank in ranks)
    return {
        kind: [line for rank in ranks for line in rank.lines if line["kind"] == kind] for kind in kinds
    }, said


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    lines, said = run(tmp_path_factory.mktemp("faults"), KINDS, 2)
    assert all(len(each) == 2 for each in lines.values()), said
    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_end_alike(ended, kind):
    lines = ended[kind]
    assert [line["error"] for line in lines] == [KINDS[kind]] * 2, lines
    assert all(line["looks"] < SOON for line in lines), lines
    assert all(line["state_kept"] for line in lines)
    if KINDS[kind]:
        assert all(line["as_before"] and line["on_meta"] for line in lines)


@pytest.mark.parametrize(
    "kind", ["missing", "corrupt", "changed", "memory", "other", "unopened", "garbled", "once-corrupt"]
)
def test_a_fault_of_one_rank_names_it(ended, kind):
    lines, fails = ended[kind], 0 if kind == "once-corrupt" else FAILS
    assert [line["rank"] for line in lines] == [fails] * 2
    assert all(f"rank {fails}: " in line["text"] for line in lines), lines
    assert lines[0]["text"] == lines[1]["text"]


def test_files_of_two_versions_are_refused_by_name(ended):
    first, second = ended["values"]
    assert first["text"] == second["text"]
    assert first["rank"] in (0, 1)
    assert f"rank {first['rank']}: the model-" in first["text"]
    assert f"is not that of rank {1 - first['rank']}" in first["text"]


def test_a_fault_of_all_ranks_names_none(ended):
    lines = ended["mismatch"]
    assert len({line["text"].splitlines()[0] for line in lines}) == 1
    assert [line["rank"] for line in lines] == [None] * 2


def test_what_a_class_draws_is_equal_on_all_ranks(ended):
    lines = ended["random"]
    assert lines[0]["extra"] == lines[1]["extra"]
    assert len({value for row in lines[0]["extra"] for value in row}) == 24


def test_a_rank_that_does_not_come_ends_the_others_in_time(ended):
    assert "rank 1 did not come within 3 seconds" in ended["late"][0]["text"]
    assert "rank 1: the other ranks have ended a load or save without this rank" in ended["late"][1]["text"]


def test_a_killed_rank_ends_the_others_at_once(tmp_path):
    """Before it comes to the load, while it reads, and while others wait for what it sends them."""
    lines, said = run(tmp_path, KILLED, 5)
    for number, kind in enumerate(KILLED):
        killed = 4 - number
        assert len(lines[kind]) == killed, said
        for line in lines[kind]:
            wanted = "NotFoundError" if kind == "unopened-killed" else "RanksError"
            assert (line["error"], line["rank"]) == (wanted, killed), line
            assert f"rank {killed}: " in line["text"]
            assert ("its process has ended" in line["text"]) == (wanted == "RanksError")
            assert line["looks"] < SOON
            assert line["as_before"]
            assert line["on_meta"]


def test_this_process_has_agreed_with_nobody():
    assert turns.TURNS == agreement._OPEN == {}
