"""A GGUF file in parts, as the package's writer splits it, is the checkpoint that it is in one file."""

from __future__ import annotations

import json
import struct

import pytest
import torch

import shardload
from shardload.checkpoint.formats.gguf_parts import parts_of
from tests.checkpoint.formats.test_gguf import by_hand, floats, text
from tests.hub_server import HubServer


def part(folder, number, tensors, *, no=None, count=3, total=3, values=(), name="m"):
    split = [
        ("split.no", 2, struct.pack("<H", number - 1 if no is None else no)),
        ("split.count", 2, struct.pack("<H", count)),
        ("split.tensors.count", 5, struct.pack("<i", total)),
    ]
    return by_hand(folder / f"{name}-{number:05}-of-00003.gguf", tensors, [*values, *split])


def three(folder, **of_the_last):
    own = [("general.architecture", 8, text("starcoder"))]
    part(folder, 1, [("a", (2, 2), 0, 0, floats(1, 2, 3, 4))], values=own)
    part(folder, 2, [("b", (1, 32), 8, 0, b"\0\x3c" + bytes(range(32)))])
    return part(folder, 3, [("c", (2,), 0, 0, floats(5, 6))], **of_the_last)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_parts_are_one_checkpoint(tmp_path, number):
    three(tmp_path)
    checkpoint = shardload.open_checkpoint(tmp_path / f"m-{number:05}-of-00003.gguf")
    assert [shard.name for shard in checkpoint.shards] == [f"m-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    told = json.loads(checkpoint.metadata["gguf"])
    assert told == {"types": {"b": "Q8_0"}, "values": {"general.architecture": "starcoder"}}
    plain = shardload.dequantised(checkpoint, "float32")
    assert plain.read("b")[0].tolist() == list(range(32))
    assert (plain.read("a").sum(), plain.read("c").sum()) == (10, 11)
    shardload.convert(tmp_path / "m-00001-of-00003.gguf", tmp_path / "out", dtype="float32")
    again = dict(shardload.open_checkpoint(tmp_path / "out").items())
    assert all(torch.equal(again[name], plain.read(name)) for name in "abc")


def test_a_part_that_is_absent_is_named(tmp_path):
    three(tmp_path).unlink()
    with pytest.raises(shardload.NotFoundError, match="1 of 3 shards") as caught:
        shardload.open_checkpoint(tmp_path / "m-00001-of-00003.gguf")
    assert "m-00003-of-00003.gguf" in caught.value.where


@pytest.mark.parametrize("wrong", [{"no": 0}, {"count": 2}])
def test_parts_of_other_sets_are_told(tmp_path, wrong):
    path = three(tmp_path, **wrong)
    with pytest.raises(shardload.CorruptError, match="not the parts of one") as caught:
        shardload.open_checkpoint(path)
    assert "m-00003-of-00003.gguf" in caught.value.where


def test_tensors_that_were_not_counted_are_told(tmp_path):
    three(tmp_path)
    part(tmp_path, 1, [("d", (1,), 0, 0, floats(1))], total=4)
    with pytest.raises(shardload.CorruptError, match="not the parts of one") as caught:
        shardload.open_checkpoint(tmp_path / "m-00002-of-00003.gguf")
    assert "counts 4 tensors, the parts hold 3" in caught.value.where


def test_a_part_alone_says_how_the_set_is_named(tmp_path):
    three(tmp_path).rename(tmp_path / "last.gguf")
    with pytest.raises(shardload.UsageError, match="one of the 3 files") as caught:
        shardload.open_checkpoint(tmp_path / "last.gguf")
    assert "last-00003-of-00003.gguf" in caught.value.cure


def test_names_that_are_of_no_set_are_files_of_their_own():
    for name in ("m.gguf", "m-00001-of-00000.gguf", "m-00001-of-00003.safetensors", "m-1-of-3.gguf"):
        assert parts_of(name) == (name,)


def test_a_folder_s_one_file_or_set_is_its_checkpoint(tmp_path):
    three(tmp_path)
    part(tmp_path, 1, [("v", (1,), 0, 0, floats(1))], name="mmproj-m")
    assert len(shardload.open_checkpoint(tmp_path).shards) == 3
    by_hand(tmp_path / "m-q8_0.gguf", [("a", (1,), 0, 0, floats(1))])
    with pytest.raises(shardload.UsageError, match="several GGUF files") as caught:
        shardload.open_checkpoint(tmp_path)
    assert caught.value.cure == "pass the file you mean, or a part of its name: variant='q8_0'"
    (shard,) = shardload.open_checkpoint(tmp_path, variant="Q8_0").shards
    assert shard.name == "m-q8_0.gguf"
    with pytest.raises(shardload.NotFoundError, match="no weights of variant 'q4_0'"):
        shardload.open_checkpoint(tmp_path, variant="q4_0")
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.bin")
    assert [shard.name for shard in shardload.open_checkpoint(tmp_path).shards] == ["model.bin"]


def test_a_set_of_parts_on_the_hub_is_its_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    three(tmp_path / "parts")
    files = {path.name: path for path in sorted((tmp_path / "parts").iterdir())}
    with HubServer(tmp_path / "hub") as hub:
        hub.commit("org/gguf", {**files, "README.md": b"# parts"})
        hub.use(monkeypatch, cache=tmp_path / "cache")
        for options in ({}, {"variant": "m"}):
            checkpoint = shardload.open_checkpoint("org/gguf", **options)
            assert [shard.name for shard in checkpoint.shards] == list(files)
        plain = shardload.dequantised(checkpoint, "float32")
        assert plain.read("b")[0].tolist() == list(range(32))
        assert (plain.read("a").sum(), plain.read("c").sum()) == (10, 11)
        shardload.convert("org/gguf", tmp_path / "out", dtype="float32")
        assert torch.equal(shardload.open_checkpoint(tmp_path / "out").read("b"), plain.read("b"))
