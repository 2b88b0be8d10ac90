"""TensorRef: a stored tensor by its header."""

from __future__ import annotations

import pytest

from shardload.keymap.derived import join
from shardload.tensor_ref import Span, TensorRef, is_mapped


def ref(dtype: str, start: int, count: int = 4, size: int = 4) -> TensorRef:
    return TensorRef("x", dtype, (count,), "model.safetensors", Span(start, start + count * size))


@pytest.mark.parametrize(
    ("dtype", "size", "start", "mapped"),
    [
        ("F32", 4, 8, True), ("F32", 4, 10, False), ("BF16", 2, 10, True), ("BF16", 2, 11, False),
        ("F64", 8, 12, False), ("U8", 1, 11, True), ("F8_E4M3", 1, 11, True), ("BOOL", 1, 13, True),
    ],
)  # fmt: skip
def test_a_tensor_is_mapped_where_its_elements_are_aligned(dtype, size, start, mapped):
    assert is_mapped(ref(dtype, start, size=size)) is mapped


def test_what_is_empty_is_mapped_and_what_is_joined_is_not_unless_it_lies_in_one_piece():
    assert is_mapped(ref("F32", 11, count=0))
    assert is_mapped(join([ref("F32", 8), ref("F32", 24)], 0))
    assert not is_mapped(join([ref("F32", 24), ref("F32", 8)], 0))
