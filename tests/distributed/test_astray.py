"""A rank that does something else than the others: all are told, at once; one outside of the model changes nothing."""

import pytest
import torch

import shardload
from tests.distributed.astray import ASTRAY, WORLD
from tests.distributed.faults import Net
from tests.distributed.spawn import run_ranks

OF_THE_RANK = {
    "save_key_map": "NotFoundError",
    "save_size": "UsageError",
    "adapter_name": "UsageError",
    "another_cut": "RanksError",
    "another_dtype": "RanksError",
    "keyword": "UnsupportedError",
    "unknown_keyword_of_fill": "KeywordError",
    "unknown_keyword_of_save": "KeywordError",
    "unknown_keyword_of_save_adapter": "KeywordError",
    "unknown_keyword_of_from_pretrained": "KeywordError",
    "no_model": "UsageError",
}
OUTSIDE = {
    "outside_fill": [ASTRAY],
    "outside_from_pretrained": [ASTRAY],
    "outside_save": list(range(1, WORLD)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("astray")
    torch.manual_seed(0)
    shardload.save(Net(), folder / "net", max_shard_size="2kB")
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    ranks = run_ranks("tests.distributed.astray", WORLD, folder, timeout=240)
    assert not any(rank.code for rank in ranks), [rank.said for rank in ranks]
    return [rank.lines for rank in ranks]


def of(ended, case):
    return [next(line for line in lines if line.get("case") == case) for lines in ended]


@pytest.mark.parametrize("case", OF_THE_RANK)
def test_what_one_rank_alone_passes_is_refused_on_all_with_its_number(ended, case):
    assert [(line["error"], line["rank"]) for line in of(ended, case)] == [
        (OF_THE_RANK[case], ASTRAY)
    ] * WORLD


def test_an_error_of_one_rank_that_is_not_ours_ends_all_too(ended):
    *others, own = of(ended, "missing_argument")
    assert (own["error"], own["rank"]) == ("TypeError", None)
    assert [(line["error"], line["rank"]) for line in others] == [("RanksError", ASTRAY)] * (WORLD - 1)


@pytest.mark.parametrize("case", ["another_call", "another_loader"])
def test_ranks_that_wait_in_different_places_are_told_and_do_not_wait(ended, case):
    lines = of(ended, case)
    assert [line["error"] for line in lines] == ["RanksError"] * WORLD
    assert len({line["rank"] for line in lines}) == 1
    assert all("do different things" in line["text"] for line in lines)


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_rank_outside_of_the_model_is_refused_and_the_others_go_on(ended, case):
    refused = ["UsageError" if rank in OUTSIDE[case] else None for rank in range(WORLD)]
    assert [line["error"] for line in of(ended, case)] == refused


def test_nothing_is_written(ended, folder):
    assert not (folder / "out").exists()


def test_a_load_on_some_ranks_leaves_the_numbers_of_torchs_groups_as_they_are(ended):
    assert [line["error"] for line in of(ended, "numbers_of_groups")] == [None] * WORLD


def test_a_rank_that_skipped_a_load_is_given_up_and_takes_part_in_the_next_ones(ended):
    """Where the others begin the next one in a moment; else all are told, and the one after that is as any other."""
    lines = of(ended, "skipped")
    assert [line["error"] for line in lines] == ["RanksError", "RanksError", None]
    assert all(f"rank {ASTRAY} did not come within 1 seconds" in line["text"] for line in lines[:ASTRAY])
    told = {(line["error"], line["rank"]) for line in of(ended, "after_it_was_skipped")}
    assert told in ({(None, None)}, {("RanksError", ASTRAY)})
    assert [line["error"] for line in of(ended, "and_again")] == [None] * WORLD


def test_another_process_group_begins_anew(ended):
    assert all(line["loaded"] for line in of(ended, "another_group"))
