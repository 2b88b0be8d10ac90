"""What torch does with tensors, done on headers: the oracle is torch itself."""

from __future__ import annotations

import pytest
import torch

from shardload import UnsupportedError
from shardload.keymap.traced import TracedTensor
from shardload.tensor_ref import Span, TensorRef
from tests.keymap.programs import Program


def traced(*shape: int, dtype: str = "F32") -> TracedTensor:
    return TracedTensor(TensorRef("stored", dtype, shape, "file", Span(0, 4 * torch.Size(shape).numel())))


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_random_programs_of_torch_give_what_their_headers_say(first):
    for seed in range(first, first + 250):
        Program(seed).run(steps=8)


@pytest.mark.parametrize(
    "compute",
    [
        lambda one: one + 1,
        lambda one: one.float(),
        lambda one: one.half(),
        lambda one: torch.zeros_like(one),
        lambda one: one.index_select(0, torch.tensor([1])),
        lambda one: one.flip(0),
        lambda one: one.repeat(2, 1),
        lambda one: one.roll(1),
        lambda one: one.mul_(2),
    ],
)
def test_what_computes_is_refused_by_name(compute):
    with pytest.raises(UnsupportedError, match="aten") as caught:
        compute(traced(2, 3, dtype="BF16"))
    assert "values" in caught.value.what


def test_a_view_of_the_file_stays_one():
    tensor = traced(6, 4)
    assert tensor.chunk(3)[1].contiguous().ref == TensorRef("stored", "F32", (2, 4), "file", Span(32, 64))
    assert tensor.view(3, 2, 4).transpose(0, 1).ref.strides == (4, 8, 1)
    assert tensor.reshape(-1, 2).reshape(6, 4).ref == tensor.ref


def test_dtypes_are_those_of_the_files():
    assert traced(2, dtype="BF16").dtype == torch.bfloat16
    assert traced(2, dtype="F4").shape == (2,)
