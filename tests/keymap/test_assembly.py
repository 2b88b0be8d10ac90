"""Joined tensors: parts in any order give what torch.cat gives, and memory is taken for what has begun."""

from __future__ import annotations

import itertools

import pytest
import torch

from shardload.keymap.assembly import Assembly, Joins, assemble, view_of
from shardload.keymap.derived import Filled, Joined, join, narrowed, transposed
from tests.keymap.stored import Stored


@pytest.fixture
def stored():
    return Stored(a=(2, 3), b=(2, 3), c=(2, 3))


def test_parts_arrive_in_any_order(stored):
    whole = join([stored.refs[name] for name in "cab"], 1)
    wanted = torch.cat([stored.tensors[name] for name in "cab"], 1)
    for order in itertools.permutations("abc"):
        joins = Joins([("x", whole), ("plain", stored.refs["a"])])
        assert "x" in joins
        assert "plain" not in joins
        for name in order[:2]:
            assert joins.take("x", stored.refs[name], stored.tensors[name]) == (stored.refs[name],)
            assert joins.pop("x") is None
        joins.take("x", stored.refs[order[2]], stored.tensors[order[2]])
        assert torch.equal(joins.pop("x"), wanted)
        with pytest.raises(KeyError):
            joins.pop("x")


def test_a_part_that_stands_twice_is_copied_into_both_places(stored):
    whole = Joined("F32", (6, 3), 0, tuple(stored.refs[name] for name in "aba"))
    assembly = Assembly(whole)
    assembly.take(stored.refs["a"], stored.tensors["a"])
    assert list(assembly.waiting) == [stored.refs["b"]]
    assembly.take(stored.refs["b"], stored.tensors["b"])
    assert not assembly.waiting
    assert torch.equal(assembly.result, torch.cat([stored.tensors[name] for name in "aba"]))


def test_padding_is_there_from_the_start(stored):
    padded = join([stored.refs["a"], Filled("F32", (1, 3), 7)], 0)
    assert Assembly(padded).result[2].tolist() == [7, 7, 7]
    only = Joined("F32", (2,), 0, (Filled("F32", (2,), 1.5),))
    joins = Joins([("pad", only), ("padded", padded)])
    assert [(name, tensor.tolist()) for name, tensor in joins.without_parts()] == [("pad", [1.5, 1.5])]


def test_a_join_within_a_join(stored):
    ab = join([stored.refs["b"], stored.refs["a"]], 0)
    whole = join([ab, join([stored.refs["c"], stored.refs["b"]], 0)], 1)
    wanted = torch.cat(
        [torch.cat([stored.tensors[n] for n in "ba"]), torch.cat([stored.tensors[n] for n in "cb"])], 1
    )
    assert torch.equal(stored.read(whole), wanted)


def test_what_is_stored_whole_is_read_and_not_copied(stored):
    ref = stored.refs["a"]
    tensor = assemble(ref, lambda asked: view_of(stored.tensors["a"], ref, asked))
    assert tensor is stored.tensors["a"]
    row = narrowed(ref, 0, 1, 1)
    assert view_of(stored.tensors["a"], ref, row).data_ptr() == stored.tensors["a"][1:].data_ptr()


def test_a_strided_view_of_a_turned_tensor(stored):
    ref = stored.refs["b"]
    column = narrowed(transposed(ref, 0, 1), 0, 1, 2)
    assert torch.equal(view_of(stored.tensors["b"], ref, column), stored.tensors["b"].t()[1:3])
    # The tensor in memory may itself be a view that is not packed.
    loose = torch.zeros(2, 6)[:, ::2].copy_(stored.tensors["b"])
    assert torch.equal(view_of(loose, ref, column), stored.tensors["b"].t()[1:3])


@pytest.mark.parametrize("dtype", ["F16", "BF16", "I64"])
def test_a_large_result_has_the_dtype_and_memory_of_its_own(dtype):
    large = Joined(dtype, (70_000,), 0, (Filled(dtype, (70_000,), 3),))
    result = Assembly(large).result
    assert result.dtype is {"F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}[dtype]
    assert result.shape == (70_000,)
    assert result.eq(3).all()
