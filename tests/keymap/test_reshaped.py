"""Derived tensors in other shapes; `test_traced.py` has random programs against torch."""

from __future__ import annotations

import pytest

from shardload.keymap.derived import Filled, join, leaves
from shardload.keymap.reshaped import permuted, reshaped
from shardload.tensor_ref import Span, TensorRef


def stored(name: str, *shape: int) -> TensorRef:
    size = 4
    for each in shape:
        size *= each
    return TensorRef(name, "F32", shape, "file", Span(0, size))


def test_a_packed_tensor_keeps_its_bytes():
    assert reshaped(stored("a", 4, 6), (2, 12)) == stored("a", 2, 12)
    assert reshaped(stored("a", 1, 6), (6,)) == stored("a", 6)
    assert reshaped(Filled("F32", (4, 6), 2.0), (24,)) == Filled("F32", (24,), 2.0)


def test_heads_that_change_places_are_two_views_each():
    """As rotary embeddings are permuted: (heads, half, 2) becomes (heads, 2, half)."""
    heads = permuted(reshaped(stored("q", 8, 3), (2, 2, 2, 3)), (0, 2, 1, 3))
    whole = reshaped(heads, (8, 3))
    assert [(ref.shape, ref.span.start, ref.strides) for ref in leaves(whole)] == [
        ((2, 3), 0, (6, 1)),
        ((2, 3), 12, (6, 1)),
        ((2, 3), 48, (6, 1)),
        ((2, 3), 60, (6, 1)),
    ]


def test_a_joined_dimension_is_cut_at_its_parts_or_into_rows():
    whole = join([stored("a", 4, 2), stored("b", 4, 2)], 0)
    assert [part.shape for part in reshaped(whole, (4, 2, 2)).parts] == [(2, 2, 2), (2, 2, 2)]
    across = reshaped(join([stored("a", 3), stored("b", 3)], 0), (3, 2))
    assert [(ref.name, ref.span.start, ref.shape) for ref in leaves(across)] == [
        ("a", 0, (1, 2)), ("a", 8, (1, 1)), ("b", 0, (1, 1)), ("b", 4, (1, 2)),
    ]  # fmt: skip


def test_another_number_of_elements_is_refused():
    with pytest.raises(ValueError, match=r"shape \[5\] is invalid for a tensor of shape \[4, 6\]"):
        reshaped(stored("a", 4, 6), (5,))
    assert reshaped(join([stored("a", 0, 2), stored("b", 0, 2)], 1), (4, 0)) == Filled("F32", (4, 0))
