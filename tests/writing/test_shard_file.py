"""One safetensors file, written from front to back and compared with what it should be."""

from __future__ import annotations

import os
import zlib

import pytest
import torch

from shardload import CorruptError
from shardload._system.progress import ProgressMeter
from shardload.writing import FileRange, Output, OutputShard, OutputTensor
from shardload.writing.layout import Layout
from shardload.writing.shard_file import bytes_of, differences, verify_copy, verify_shard, write_shard
from tests.tiny import tensor_bytes
from tests.writing.outputs import computed, copy_of, read, refused


def test_blocks_of_another_size(tmp_path):
    for rows in (1, 3):
        tensor = OutputTensor("w", "F32", (2, 2), lambda rows=rows: [torch.zeros(rows, 2)])
        refused(
            tmp_path / "out", Output((OutputShard("m.safetensors", (tensor,)),)), CorruptError, "16 bytes"
        )


def test_a_source_that_changes_meanwhile(base, tmp_path):
    output = copy_of(base, {"head.weight"})
    shard = next(shard for shard in output.shards if isinstance(shard, OutputShard))
    head = next(tensor for tensor in shard.tensors if not isinstance(tensor.content, FileRange))
    blocks = head.content

    def touching():
        yield from blocks()
        os.utime(base / shard.name)

    tensors = tuple(
        OutputTensor(t.name, t.dtype, t.shape, touching) if t is head else t for t in shard.tensors
    )
    refused(tmp_path / "out", Output((OutputShard(shard.name, tensors),)), CorruptError, "changed while")


def test_bytes_of():
    tensor = torch.arange(12, dtype=torch.int16).view(3, 4)
    assert bytes(bytes_of(tensor)) == tensor_bytes(tensor)
    assert bytes(bytes_of(tensor[1:])) == tensor_bytes(tensor)[8:]
    assert len(bytes_of(torch.empty(0, 3))) == 0
    with pytest.raises(ValueError):
        bytes_of(tensor.T)


@pytest.fixture
def shard(tmp_path):
    """A layout of a computed tensor and of one that is copied out of another file."""
    (tmp_path / "source").write_bytes(b"#" * 5 + bytes(range(16)))
    made = torch.arange(6.0).view(3, 2)
    copied = OutputTensor("copied", "I8", (16,), FileRange(tmp_path / "source", 5))
    return Layout.of(OutputShard("model.safetensors", (copied, computed("made", made, rows=2)))), made


def test_a_shard_is_what_the_library_reads_and_its_sums_are_of_the_computed(tmp_path, shard):
    layout, made = shard
    path = tmp_path / "model.safetensors"
    sums = write_shard(path, layout, ProgressMeter(False, layout.nbytes))
    found, metadata = read(path)
    assert torch.equal(found["made"], made)
    assert found["copied"].tolist() == list(range(16))
    assert metadata == {"format": "pt"}
    assert sums == {"made": zlib.crc32(tensor_bytes(made))}
    verify_shard(path, layout, sums)
    assert differences(path, layout) == []
    with pytest.raises(FileExistsError):
        write_shard(path, layout, ProgressMeter(False, layout.nbytes))


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("name", ["made", "copied", "header", "longer", "shorter"])
def test_what_differs_is_named(tmp_path, shard, name, summed):
    layout, _ = shard
    path = tmp_path / "model.safetensors"
    sums = write_shard(path, layout, ProgressMeter(False, layout.nbytes))
    data = bytearray(path.read_bytes())
    places = {tensor.name: place for tensor, place in layout.places} | {"header": 9}
    if name in places:
        data[places[name]] ^= 1
        wanted = ["the header or the size"] if name == "header" else [name]
    else:
        data = data + b"x" if name == "longer" else data[:-1]
        wanted = ["the header or the size"] + (["copied"] if name == "shorter" else [])
    path.write_bytes(data)
    found = differences(path, layout, sums if summed else None)
    assert [what.partition(" (")[0] for what in found] == wanted
    with pytest.raises(CorruptError, match=f"in {len(wanted)} places"):
        verify_shard(path, layout, sums)


def test_a_copy_is_compared_to_its_end(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"weights")
    verify_copy(tmp_path / "a", tmp_path / "b")
    for other in (b"weightz", b"weight", b"weights!"):
        (tmp_path / "b").write_bytes(other)
        with pytest.raises(CorruptError, match="differs from its source"):
            verify_copy(tmp_path / "b", tmp_path / "a")
