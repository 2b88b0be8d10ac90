"""Regions of stored tensors equal torch's own slices, and the bytes that are read for them are counted."""

from __future__ import annotations

import itertools

import pytest
import torch

from shardload import UsageError, open_checkpoint
from shardload.checkpoint.regions import read_tensor
from shardload.checkpoint.sources.folder import LocalFile
from tests.tiny import Net, random_state, save_safetensors, write_checkpoint

STATE = {
    "matrix": torch.randn(96, 4096),
    "cube": torch.randn(12, 64, 700),
    "narrow": torch.randn(500, 40),
    "vector": torch.randn(3000),
}
SLICES = [slice(None), slice(5, 40), slice(None, None, 3), slice(7, 60, 2), slice(30, 8), slice(-9, None)]


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """Return a checkpoint, and a list that records the length of each read of its files."""
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, STATE))
    lengths: list[int] = []
    read_at = LocalFile.read_at

    def counting(self, offset: int, length: int) -> bytes:
        lengths.append(length)
        return read_at(self, offset, length)

    monkeypatch.setattr(LocalFile, "read_at", counting)
    return checkpoint, lengths


@pytest.mark.parametrize("name", STATE)
def test_a_region_is_torchs_slice_with_a_storage_of_its_own(counted, name):
    checkpoint, _ = counted
    for region in itertools.product(SLICES, repeat=STATE[name].ndim):
        part = checkpoint.read(name, region)
        assert torch.equal(part, STATE[name][region]), region
        assert part.untyped_storage().nbytes() == part.nbytes, region


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("matrix", (slice(10, 70),)),
        ("matrix", (slice(None), slice(1024, 2048))),
        ("matrix", (slice(3, 90, 2), slice(512, 4096))),
        ("cube", (slice(2, 9), slice(20, 40))),
        ("vector", (slice(100, 2000),)),
    ],
)
def test_no_byte_beside_a_region_is_read(counted, name, region):
    checkpoint, lengths = counted
    part = checkpoint.read(name, region)
    assert sum(lengths) <= 1.02 * part.nbytes


def test_short_runs_are_not_read_one_by_one(counted):
    checkpoint, lengths = counted
    checkpoint.read("narrow", (slice(None), slice(3, 9)))
    assert len(lengths) == 1


def test_a_region_does_not_keep_the_tensor_alive(tmp_path):
    save_safetensors(
        {"big": torch.randn(1000, 100), "wide": torch.randn(4, 2000)}, tmp_path / "model.safetensors"
    )
    checkpoint = open_checkpoint(tmp_path)
    rows = checkpoint.read("big", (slice(5, 15), slice(None)))
    assert rows.untyped_storage().nbytes() == 10 * 100 * 4
    part = checkpoint.read("big", (slice(0, 1000), slice(3, 5)))
    assert part.untyped_storage().nbytes() == 1000 * 2 * 4
    stepped = checkpoint.read("wide", (slice(None), slice(0, 1000, 10)))
    assert stepped.untyped_storage().nbytes() == 4 * 100 * 4
    assert torch.equal(rows, checkpoint.read("big")[5:15])
    assert torch.equal(part, checkpoint.read("big")[:, 3:5])
    assert torch.equal(stepped, checkpoint.read("wide")[:, :1000:10])


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()))


@pytest.mark.parametrize(
    "region",
    [
        (slice(0, 1, 0),), (1,), slice(0, 1), (slice(None, None, -1),), (slice(None),) * 3, (slice("a"),), [slice(1)],
        (slice(1.5),), (None,), (...,),
    ],
    ids=str,
)  # fmt: skip
def test_a_region_of_the_wrong_kind_is_a_typed_error(folder, region):
    with pytest.raises(UsageError, match="region"):
        open_checkpoint(folder).read("head.weight", region)
    assert open_checkpoint(folder).read("head.weight", (slice(10**30),)).shape == (12, 8)


class DistantFile(LocalFile):
    """A file whose reads are requests."""

    is_remote = True


def test_a_long_region_of_a_file_far_away_goes_straight_into_memory(tmp_path, monkeypatch):
    matrix = torch.randn(3000, 200)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"m": matrix}))
    ref = checkpoint.tensors["m"]
    file = DistantFile(ref.shard, tmp_path / ref.shard)
    monkeypatch.setattr(LocalFile, "read_at", None)
    assert torch.equal(read_tensor(file, ref, (slice(100, 2900, 3),), checkpoint._opened), matrix[100:2900:3])
