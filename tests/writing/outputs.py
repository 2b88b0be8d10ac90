"""Outputs to write: computed tensors, copies of a checkpoint, and what is looked at afterwards."""

from __future__ import annotations

import os
from functools import partial

import pytest
import safetensors
import torch

from shardload import open_checkpoint
from shardload.writing import (
    FileRange,
    Output,
    OutputShard,
    OutputTensor,
    SameFile,
    read_raw_header,
    write_output,
)

CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int8: "I8",
}


def computed(name, tensor, rows=3):
    blocks = tensor.split(rows) if tensor.dim() else [tensor]
    return OutputTensor(name, CODES[tensor.dtype], tuple(tensor.shape), lambda: iter(blocks))


def read(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in list(file.keys())}, file.metadata()


def _through_memory(checkpoint, name):
    yield checkpoint.read(name).clone()


def copy_of(folder, changed=()):
    """An output that copies a checkpoint, the tensors in `changed` through memory, headers used again."""
    checkpoint = open_checkpoint(folder)
    shards = []
    for info in checkpoint.shards:
        path = folder / info.name
        refs = sorted((r for r in checkpoint.tensors.values() if r.shard == info.name), key=lambda r: r.span)
        expected = checkpoint.identities[info.name]
        if not any(ref.name in changed for ref in refs):
            shards.append(SameFile(info.name, path, expected))
            continue
        tensors = []
        for ref in refs:
            content = FileRange(path, ref.span.start, expected)
            if ref.name in changed:
                content = partial(_through_memory, checkpoint, ref.name)
            tensors.append(OutputTensor(ref.name, ref.dtype, ref.shape, content))
        shards.append(OutputShard(info.name, tuple(tensors), header=read_raw_header(path)))
    index = (checkpoint.index, (folder / checkpoint.index).read_bytes())
    return Output(tuple(shards), index, {"config.json": folder / "config.json"}, (folder,))


def same_files(one, other):
    names = sorted(os.listdir(one))
    assert names == sorted(os.listdir(other))
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def refused(folder, output, error, match, **options):
    before = sorted(os.walk(folder)) if folder.exists() else None
    with pytest.raises(error, match=match):
        write_output(folder, output, **options)
    assert (sorted(os.walk(folder)) if folder.exists() else None) == before
