"""Groups: the numbers of a list of stored tensors, compared before the list is stacked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shardload import MismatchError
from shardload.transformers_classes.groups import Group

GATE, UP = r"\.experts.*.w1.weight", r"\.experts.*.w3.weight"


def group(**numbers):
    patterns = {"w1": GATE, "w3": UP}
    converter = SimpleNamespace(source_patterns=[GATE, UP], operations=[])
    sources = {
        patterns[leaf]: [f"layers.10.experts.{number}.{leaf}.weight" for number in found]
        for leaf, found in numbers.items()
    }
    return Group(converter, sources)


@pytest.mark.parametrize("numbers", [range(12), [0], ["00", "01", "02"], ["10", *range(10)]])
def test_numbers_without_a_gap_are_accepted(numbers):
    group(w1=numbers, w3=numbers).refuse_gaps()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0, 1, 2, 7], [0, 1, 2, 7], "experts.3.w1.weight, .*experts.6.w1.weight of 0 to 7 are missing"),
        ([1, 2, 3], [1, 2, 3], "experts.0.w1.weight of 0 to 3 is missing"),
        ([0, 1, 2, 3], [0, 1, 2, 4], "experts.4.w1.weight of 0 to 4 is missing"),
        ([0, 1, 2], [0, 1], "experts.2.w3.weight of 0 to 2 is missing"),
        ([3], [3], "experts.0.w1.weight, .* of 0 to 3 are missing"),
        (range(0, 20, 2), range(0, 20, 2), "experts.7.w1.weight and 5 more of 0 to 18"),
        ([0, 1, "01"], [0, 1, 2], "experts.2.w1.weight of 0 to 2 is missing"),
        ([0, 1, "01"], [0, 1, "01"], "experts.1.w1.weight and .*experts.01.w1.weight have one number"),
    ],
)
def test_what_is_missing_is_named(first, second, message):
    with pytest.raises(MismatchError, match=message):
        group(w1=first, w3=second).refuse_gaps()


def test_a_pattern_that_no_tensor_met_is_named():
    assert group(w1=[0, 1]).lacks == "no tensor is stored for experts.*.w3.weight"
    assert group(w1=[0, 1], w3=[0, 1]).lacks == ""


def test_numbers_within_a_segment_count():
    pattern = "ngram_embedding.shard_*.weight"
    names = [f"model.layers.3.ngram_embedding.shard_{number}.weight" for number in (0, 2)]
    with pytest.raises(MismatchError, match="ngram_embedding.shard_1.weight of 0 to 2 is missing"):
        Group(SimpleNamespace(source_patterns=[pattern], operations=[]), {pattern: names}).refuse_gaps()


def test_a_result_that_is_stored_too_is_refused_by_its_stored_name():
    with pytest.raises(
        MismatchError, match=r"w1.weight is a part of gate_up, which is stored too, as old\.gate_up"
    ):
        group(w1=[0], w3=[0]).refuse_taken({"gate_up": "old.gate_up"}, ["down", "gate_up"])
