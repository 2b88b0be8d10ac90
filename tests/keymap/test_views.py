"""Views of one stored tensor: each operation gives the place of what torch's own gives."""

from __future__ import annotations

import pytest
import torch

from shardload import UnsupportedError
from shardload.keymap.views import (
    contiguous_strides,
    narrowed_view,
    reshaped_view,
    side_by_side,
    squeezed_view,
    strided_view,
    strides_of,
    transposed_view,
    unsqueezed_view,
)
from shardload.tensor_ref import Span, TensorRef

REF = TensorRef("w", "F32", (4, 3, 5), "a", Span(40, 280))


def like(ref, tensor):
    assert ref.shape == tensor.shape
    assert ref.span.start == 40 + 4 * tensor.storage_offset()
    assert tuple(strides_of(ref)) == tensor.stride()


@pytest.mark.parametrize(
    ("view", "own"),
    [
        ((narrowed_view, 0, 1, 2), lambda t: t.narrow(0, 1, 2)),
        ((narrowed_view, 2, 3, 2), lambda t: t.narrow(2, 3, 2)),
        ((transposed_view, 0, 2), lambda t: t.transpose(0, 2)),
        ((unsqueezed_view, 1), lambda t: t.unsqueeze(1)),
        ((unsqueezed_view, 3), lambda t: t.unsqueeze(3)),
        ((reshaped_view, (12, 5)), lambda t: t.view(12, 5)),
    ],
)
def test_the_place_is_torchs(view, own):
    operation, *arguments = view
    like(operation(REF, *arguments), own(torch.zeros(4, 3, 5)))


def test_a_dimension_of_one_comes_and_goes():
    turned = transposed_view(REF, 0, 1)
    assert squeezed_view(unsqueezed_view(turned, 2), 2) == turned
    assert contiguous_strides((4, 3, 5)) == (15, 5, 1)


def test_halves_are_whole_again():
    halves = [narrowed_view(REF, 1, 0, 1), narrowed_view(REF, 1, 1, 2)]
    assert side_by_side(*halves, 1) == REF
    assert side_by_side(*halves[::-1], 1) is None


def test_bits_are_not_cut():
    with pytest.raises(UnsupportedError, match="4 bits"):
        strided_view(TensorRef("w", "F4", (4, 4), "a", Span(0, 8)), (4, 2), (4, 1), 0)
