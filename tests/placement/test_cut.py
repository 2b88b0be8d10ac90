"""Cuts are those of torch's own chunks and placements, on headers and in memory."""

from __future__ import annotations

import itertools

import pytest
import torch

from shardload import open_checkpoint
from shardload.keymap import Joined, KeyMap, leaves
from shardload.placement.cut import Split, cut_by
from shardload.tensor_ref import TensorRef


def chunk(tensor, split):
    """Torch's own chunk, empty where there are fewer."""
    chunks = torch.chunk(tensor, split.count, split.dim)
    if split.index < len(chunks):
        return chunks[split.index]
    return tensor.narrow(split.dim, 0, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 515])
def test_chunks_are_those_of_torch(size):
    whole = torch.arange(size * 6).view(size, 6)
    for count, other in itertools.product((1, 2, 3, 4, 8), (1, 2, 4)):
        for index, second in itertools.product(range(count), range(other)):
            splits = (Split(0, count, index), Split(1, other, second))
            part = chunk(chunk(whole, splits[0]), splits[1])
            cut = cut_by((size, 6), splits)
            assert torch.equal(cut.view(whole), part)
            assert cut.shape == tuple(part.shape)


@pytest.mark.parametrize("size", [4, 5, 7, 11, 12])
def test_an_outer_split_divides_what_the_inner_one_left(size):
    whole = torch.arange(size)
    seen = []
    for outer, inner in itertools.product(range(2), range(3)):
        part = chunk(chunk(whole, Split(0, 3, inner)), Split(0, 2, outer))
        cut = cut_by((size,), (Split(0, 2, outer, outer=True), Split(0, 3, inner)))
        assert torch.equal(cut.view(whole), part)
        seen += part.tolist()
    assert sorted(seen) == list(range(size))


def test_a_part_of_a_header_reads_as_the_part_of_the_tensor(tmp_path):
    torch.save(
        {
            "a": torch.arange(24).view(6, 4),
            "b": torch.arange(100, 116).view(4, 4),
            "t": torch.arange(12).view(3, 4).t(),
        },
        tmp_path / "model.bin",
    )
    checkpoint = open_checkpoint(tmp_path / "model.bin")
    mapped = KeyMap().cat(["a", "b"], "ab").map_headers(checkpoint.tensors).tensors
    whole = {name: checkpoint.read_derived(tensor) for name, tensor in mapped.items()}
    for name, dim, count in itertools.product(mapped, (0, 1), (1, 2, 3, 4)):
        for index in range(count):
            cut = cut_by(tuple(whole[name].shape), (Split(dim, count, index),))
            part = cut.of(mapped[name])
            assert torch.equal(checkpoint.read_derived(part), cut.view(whole[name])), (
                name,
                dim,
                count,
                index,
            )


def test_a_part_of_rows_has_the_bytes_of_its_rows_alone(tmp_path):
    torch.save({"a": torch.zeros(6, 4), "b": torch.zeros(4, 4)}, tmp_path / "model.bin")
    tensors = (
        KeyMap().cat(["a", "b"], "ab").map_headers(open_checkpoint(tmp_path / "model.bin").tensors).tensors
    )
    first = cut_by((10, 4), (Split(0, 2, 0),)).of(tensors["ab"])
    assert isinstance(first, TensorRef)
    assert first.nbytes == 5 * 16
    last = cut_by((10, 4), (Split(0, 2, 1),)).of(tensors["ab"])
    assert isinstance(last, Joined)
    assert [part.nbytes for part in leaves(last)] == [16, 64]
    nothing = cut_by((10, 4), (Split(0, 16, 15),)).of(tensors["ab"])
    assert isinstance(nothing, TensorRef)
    assert (nothing.shape, nothing.nbytes) == ((0, 4), 0)


def test_a_part_of_added_rows_alone_is_these_rows(tmp_path):
    torch.save({"a": torch.arange(24).view(6, 4)}, tmp_path / "model.bin")
    checkpoint = open_checkpoint(tmp_path / "model.bin")
    padded = KeyMap().pad_rows("a", 16, value=7).map_headers(checkpoint.tensors).tensors["a"]
    whole = checkpoint.read_derived(padded)
    for split, index in itertools.product((1, 2, 4, 5), range(5)):
        cut = cut_by((16, 4), (Split(0, split, min(index, split - 1)), Split(1, 3, index % 3)))
        part = cut.of(padded)
        assert part.shape == cut.shape
        assert torch.equal(checkpoint.read_derived(part), cut.view(whole))


@pytest.mark.parametrize(("pieces", "count"), [(2, 2), (3, 2), (2, 4), (1, 3)])
def test_a_split_in_pieces_takes_a_chunk_of_each(tmp_path, pieces, count):
    torch.save({"a": torch.arange(24 * 6).view(24, 6)}, tmp_path / "model.bin")
    checkpoint = open_checkpoint(tmp_path / "model.bin")
    stored = checkpoint.tensors["a"]
    whole = checkpoint.read_derived(stored)
    for index, other in itertools.product(range(count), range(2)):
        cut = cut_by((24, 6), (Split(0, count, index, pieces=pieces), Split(1, 2, other)))
        right = torch.cat([torch.chunk(each, count)[index] for each in torch.chunk(whole, pieces)])
        right = torch.chunk(right, 2, 1)[other]
        assert torch.equal(cut.view(whole), right)
        assert torch.equal(checkpoint.read_derived(cut.of(stored)), right)
