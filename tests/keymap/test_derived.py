"""Tensors that rules make: each operation on headers gives the place of what torch's own operation gives."""

from __future__ import annotations

import random

import pytest
import torch

from shardload import KeyMap, UnsupportedError
from shardload.keymap.derived import (
    Filled,
    Joined,
    as_view,
    entries,
    join,
    leaves,
    narrowed,
    stored_as,
    transposed,
    unsqueezed,
)
from shardload.keymap.views import contiguous_strides
from shardload.tensor_ref import Span, TensorRef
from tests.keymap.random_maps import refs_of
from tests.keymap.stored import Stored


def test_a_part_is_a_place_in_the_file():
    refs = {"qkv": TensorRef("qkv", "BF16", (12, 5), "a", Span(100, 220))}
    parts = KeyMap().split("qkv", ["q", "k"], [8, 4]).map_headers(refs).tensors
    assert parts["k"] == TensorRef("qkv", "BF16", (4, 5), "a", Span(180, 220))
    columns = KeyMap().split("qkv", ["q", "k"], [3, 2], dim=1).map_headers(refs).tensors
    assert columns["k"] == TensorRef("qkv", "BF16", (12, 2), "a", Span(106, 220), (5, 1))
    turned = KeyMap().transpose("qkv").map_headers(refs).tensors
    assert turned["qkv"] == TensorRef("qkv", "BF16", (5, 12), "a", Span(100, 220), (1, 5))


def test_parts_side_by_side_in_a_file_are_a_view():
    refs = refs_of({"gate": (4, 3), "up": (4, 3), "down": (3, 4)})
    joined = KeyMap().cat(["gate", "up"], "gate_up").map_headers(refs).tensors["gate_up"]
    assert isinstance(joined, Joined)
    view = as_view(joined)
    assert view is not None
    assert (view.shape, view.span, view.strides) == ((8, 3), Span(0, 96), None)
    other = KeyMap().cat(["up", "gate"], "gate_up").map_headers(refs).tensors["gate_up"]
    assert as_view(other) is None
    stacked = KeyMap().rename("gate", "x.0").rename("up", "x.1").stack("x.{n}", "x").map_headers(refs)
    assert as_view(stacked.tensors["x"]).shape == (2, 4, 3)


def test_packed_dtypes_can_be_renamed_only():
    refs = {"a": TensorRef("a", "F4", (4, 2), "s", Span(0, 4))}
    assert KeyMap().rename("a", "b").map_headers(refs).tensors["b"] is refs["a"]
    with pytest.raises(UnsupportedError, match="4 bits an element"):
        KeyMap().split("a", ["b", "c"]).map_headers(refs)


def changed(rng, header, tensor):
    """Apply one random operation to a header and to the tensor that it stands for."""
    rank = len(header.shape)
    kind = rng.randrange(4)
    if kind == 0 and rank:
        dim = rng.randrange(rank)
        start = rng.randrange(header.shape[dim])
        length = rng.randint(1, header.shape[dim] - start)
        return narrowed(header, dim, start, length), tensor.narrow(dim, start, length)
    if kind == 1 and rank:
        first, second = rng.randrange(rank), rng.randrange(rank)
        return transposed(header, first, second), tensor.transpose(first, second)
    if kind == 2 and rank < 5:
        dim = rng.randint(0, rank)
        return unsqueezed(header, dim), tensor.unsqueeze(dim)
    if kind == 3 and rank > 1:
        dim = rng.randrange(rank)
        at = rng.randrange(header.shape[dim])
        return entries(header, dim)[at], tensor.unbind(dim)[at]
    return header, tensor


@pytest.mark.parametrize("seed", range(60))
def test_operations_on_headers_are_torchs_on_tensors(seed):
    rng = random.Random(seed)
    shape = tuple(rng.randint(1, 6) for _ in range(rng.randint(1, 3)))
    stored = Stored(a=shape, b=shape, c=shape)
    header, tensor = stored.refs["a"], stored.tensors["a"]
    if seed % 2:
        dim = rng.randrange(len(shape))
        names = rng.sample(["a", "b", "c"], rng.randint(2, 3))
        header = join([stored.refs[name] for name in names], dim)
        tensor = torch.cat([stored.tensors[name] for name in names], dim)
    for _ in range(6):
        header, tensor = changed(rng, header, tensor)
        assert header.shape == tensor.shape
        assert torch.equal(stored.read(header), tensor)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_cut_and_joined_again_it_is_the_header_that_it_was(dim):
    ref = Stored(a=(4, 6, 2)).refs["a"]
    parts = [narrowed(ref, dim, at, 1) for at in range(ref.shape[dim])]
    assert join(parts, dim) == ref
    if ref.shape[dim] > 2:
        assert isinstance(join(parts[::-1], dim), Joined)


def test_padding_is_joined_too_and_has_no_place():
    ref = Stored(a=(2, 3)).refs["a"]
    padded = join([ref, Filled("F32", (1, 3), 7), Filled("F32", (1, 3), 7)], 0)
    assert padded.parts == (ref, Filled("F32", (2, 3), 7))
    assert list(leaves(padded)) == [ref]
    assert (padded.name, padded.nbytes, padded.numel) == ("a", 48, 12)
    assert as_view(padded) is None
    assert narrowed(padded, 0, 2, 1) == Filled("F32", (1, 3), 7)
    assert narrowed(padded, 0, 1, 3).parts[0].span.start == ref.span.start + 12


def test_a_part_outside_is_refused():
    ref = Stored(a=(4, 2)).refs["a"]
    for start, length in ((-1, 2), (3, 2), (5, 0), (0, -1)):
        with pytest.raises(ValueError, match="outside"):
            narrowed(ref, 0, start, length)


def test_strides_are_torchs():
    for shape in ((), (3,), (2, 3, 4), (5, 1, 2), (2, 0, 3)):
        assert contiguous_strides(shape) == torch.empty(shape).stride()


def test_a_long_join_is_named_by_its_ends():
    refs = Stored(a=(1,), b=(1,), c=(1,), d=(1,)).refs
    assert join([refs[name] for name in "ba"], 0).name == "b + a"
    long = join([refs[name] for name in "badc"], 0)
    assert long.name == "b … c (4 tensors)"
    assert stored_as("x", long).span.nbytes == 16
