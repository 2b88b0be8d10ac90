"""The state dict that ranks hold together. Ranks as processes save theirs in test_collective.py."""

from __future__ import annotations

import pytest
import torch

from shardload.errors import RanksError
from shardload.writing import ranks_state

ONE = {"a": ([4, 2], "torch.float32", "a"), "b": ([4, 2], "torch.float32", "a")}


def test_a_stage_has_the_headers_of_the_others_without_their_memory():
    own = {"c": torch.ones(3)}
    state = ranks_state._together(own, [ONE, {"c": ([3], "torch.float32", "c")}])
    assert list(state) == ["a", "b", "c"]
    assert state["a"] is state["b"]  # tied in the other stage
    assert (state["a"].shape, state["a"].untyped_storage().nbytes()) == ((4, 2), 4)
    assert state["c"] is own["c"]


def test_names_of_one_tensor_in_one_stage_alone_are_no_difference():
    last = {"a": ([4, 2], "torch.float32", "a"), "head": ([4, 2], "torch.float32", "a")}
    state = ranks_state._together({}, [{"a": ONE["a"]}, last])
    assert state["head"] is state["a"]


@pytest.mark.parametrize(
    "other",
    [
        {"a": ([4, 3], "torch.float32", "a")},
        {"a": ([4, 2], "torch.bfloat16", "a")},
        {"a": ONE["a"], "b": ([4, 2], "torch.float32", "b")},
    ],
)
def test_different_tensors_of_one_name_are_refused(other):
    with pytest.raises(RanksError, match="different tensors of the name"):
        ranks_state._together({}, [ONE, other])
