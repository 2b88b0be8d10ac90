"""Output: the order of its files, and tensors split into shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shardload import UnsupportedError
from shardload.writing import split_into_shards
from shardload.writing.output import FileRange, Output, OutputShard, OutputTensor, SameFile, index_document
from tests.writing.outputs import computed


def test_split_into_shards():
    tensors = [computed(name, torch.zeros(4, dtype=torch.float32)) for name in "abcde"]
    shards, index = split_into_shards(tensors, 32)
    assert [[t.name for t in s.tensors] for s in shards] == [["a", "b"], ["c", "d"], ["e"]]
    assert shards[0].name == "model-00001-of-00003.safetensors"
    document = json.loads(index[1])
    assert index[0] == "model.safetensors.index.json"
    assert document["metadata"]["total_size"] == 80
    assert document["weight_map"]["e"] == "model-00003-of-00003.safetensors"
    assert [len(s.tensors) for s in split_into_shards(tensors, 3)[0]] == [1] * 5
    whole, none = split_into_shards(tensors)
    assert whole[0].name == "model.safetensors"
    assert none is None


def test_what_decides_what_a_reader_sees_comes_last():
    shards = (OutputShard("a.safetensors", ()), SameFile("b.safetensors", Path("b")))
    beside = {"config.json": b"{}", "code.py": Path("code.py")}
    assert Output(shards, None, beside).names == ["config.json", "code.py", "a.safetensors", "b.safetensors"]
    assert Output(shards, ("i.json", b""), beside).names[-1] == "i.json"


def test_a_tensor_has_whole_bytes():
    def tensor(dtype, shape):
        return OutputTensor("w", dtype, shape, FileRange(Path("x"), 0))

    assert tensor("F4", (3, 2)).nbytes == 3
    assert tensor("BF16", (3, 0)).nbytes == 0
    assert tensor("F64", ()).nbytes == 8
    with pytest.raises(UnsupportedError, match="do not fill whole bytes"):
        assert tensor("F4", (3,)).nbytes


def test_an_index_is_that_of_the_hub():
    assert json.loads(index_document({"w": "a.safetensors"}, 7)) == {
        "metadata": {"total_size": 7},
        "weight_map": {"w": "a.safetensors"},
    }


def test_a_shard_is_filled_up_to_its_limit_and_no_further():
    tensors = [
        computed(name, torch.zeros(size, dtype=torch.int8))
        for name, size in zip("abcd", (3, 5, 9, 1), strict=True)
    ]
    shards, _ = split_into_shards(tensors, 8)
    assert [[tensor.name for tensor in shard.tensors] for shard in shards] == [["a", "b"], ["c"], ["d"]]
    assert split_into_shards([], 8) == ((OutputShard("model.safetensors", ()),), None)
