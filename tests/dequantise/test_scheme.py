"""Schemes: what a weight is as a matrix, and groups of columns of which the last may be shorter."""

from __future__ import annotations

import pytest
import torch

from shardload.dequantise.scheme import (
    BadValuesError,
    Scheme,
    Weight,
    grouped,
    require_finite,
    whole_groups,
)
from shardload.tensor_ref import Span, TensorRef


def test_a_weight_of_more_dimensions_is_a_matrix():
    ref = TensorRef("w_blocks", "U8", (6, 16), "a", Span(0, 96))
    weight = Weight("w", Scheme(), (2, 3, 32), (("numbers", ref),), beside=("w_shape",))
    assert (weight.rows, weight.columns) == (6, 32)
    assert weight.stored == ("w_blocks", "w_shape")


def test_whole_groups_end_with_the_weight():
    assert whole_groups(range(5, 9), 4, 10) == range(4, 10)
    assert whole_groups(range(4, 8), 4, 10) == range(4, 8)


@pytest.mark.parametrize(("columns", "size"), [(8, 4), (10, 4), (3, 4)])
def test_groups_are_views_of_the_matrix(columns, size):
    values = torch.ones(2, columns)
    for view, groups in grouped(values, size, 5):
        view.mul_(torch.arange(groups.start, groups.stop)[None, :, None])
    assert values[0].tolist() == [5 + column // size for column in range(columns)]


def test_scales_have_to_be_numbers():
    require_finite("scales", torch.ones(3))
    with pytest.raises(BadValuesError, match="not finite") as caught:
        require_finite("scales", torch.tensor([1.0, torch.inf]))
    assert caught.value.role == "scales"
