"""Packed weights for tests, written by an independent reading of each layout, and what has to hold for all of them."""

from __future__ import annotations

import json
import random

import torch
from torch import nn

import shardload
from shardload.keymap.derived import narrowed, transposed
from tests.tiny import save_safetensors


def words(numbers, bits, dim):
    """Pack whole numbers along a dimension into int32, low bits first, without a gap between words."""
    rows = numbers.movedim(dim, -1).tolist()

    def packed(row):
        stream = sum(number << (bits * place) for place, number in enumerate(row))
        count = len(row) * bits // 32
        found = [(stream >> (32 * place)) & 0xFFFFFFFF for place in range(count)]
        return [word - 2**32 if word >= 2**31 else word for word in found]

    return torch.tensor([packed(row) for row in rows], dtype=torch.int32).movedim(-1, dim).contiguous()


def folder_of(path, tensors, quantisation, **config):
    """Write a checkpoint with a quantiser's settings in its config."""
    path.mkdir(exist_ok=True)
    save_safetensors(tensors, path / "model.safetensors")
    named = {"quantization_config": quantisation} if quantisation is not None else {}
    (path / "config.json").write_text(json.dumps({**config, **named}))
    return path


class Layer(nn.Module):
    """A model of one weight, `layer.weight`."""

    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Module()
        self.layer.weight = nn.Parameter(torch.zeros(shape))


def holds(folder, wanted, name="layer.weight", *, tries=12):
    """Check that a folder's only packed weight is `wanted`, whole, cut, turned, converted and in a model."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        checkpoint = shardload.dequantised(shardload.open_checkpoint(folder), dtype)
        assert torch.equal(checkpoint.read_derived(checkpoint.tensors[name]), wanted.to(dtype))
    checkpoint = shardload.dequantised(shardload.open_checkpoint(folder), wanted.dtype)
    tensor = checkpoint.tensors[name]
    generator = random.Random(0)
    for _ in range(tries):
        bounds = [sorted(generator.sample(range(size + 1), 2)) for size in wanted.shape]
        part, own = tensor, wanted
        for dim, (start, stop) in enumerate(bounds):
            part, own = narrowed(part, dim, start, stop - start), own.narrow(dim, start, stop - start)
        assert torch.equal(checkpoint.read_derived(part), own), bounds
        turned = transposed(part, 0, wanted.dim() - 1)
        assert torch.equal(checkpoint.read_derived(turned), own.transpose(0, -1)), bounds
    if name == "layer.weight":
        for options in ({}, {"copy": True}):
            shell = shardload.build_shell(lambda: Layer(wanted.shape))
            report = shardload.fill(shell, shardload.open_checkpoint(folder), dtype="bfloat16", **options)
            assert torch.equal(shell.model.layer.weight, wanted.bfloat16())
            assert report.packing == checkpoint.packing
    out = folder.parent / f"{folder.name}-plain"
    shardload.convert(folder, out, dtype="float32")
    plain = shardload.open_checkpoint(out)
    assert torch.equal(plain.read(name), wanted.float())
    assert "quantization_config" not in (plain.config or {})
