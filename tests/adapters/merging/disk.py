"""Bases and adapters for merges on disk, and what has to come out."""

from __future__ import annotations

import pytest
import torch

from shardload import merge_to_disk, open_checkpoint
from tests.adapters import tiny
from tests.adapters.tiny import Tiny
from tests.tiny import write_checkpoint

CONFIG = {"architectures": ["Tiny"], "torch_dtype": "float16", "vocab_size": tiny.VOCABULARY}
BESIDE = {"tokenizer.json": b"{}", "modeling_x.py": b"x = 1\n", "README.md": b"hello"}


def base_of(folder, dtype=torch.float16, shards=3, kind="safetensors", config=CONFIG, model=None):
    state = (Tiny(dtype) if model is None else model).state_dict()
    write_checkpoint(folder, state, shards=shards, kind=kind, config=config)
    for name, content in BESIDE.items():
        (folder / name).write_bytes(content)
    return folder


def merged_by_hand(state, tensors, scale, weight=1.0):
    """The formula, on whole tensors: one product, one sum in fp32, one rounding."""
    result = dict(state)
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix(tiny.PREFIX).replace("lora_A.weight", "weight")
            b = tensors[key.replace("lora_A", "lora_B")]
            wide = torch.promote_types(torch.float32, result[name].dtype)
            delta = torch.mm(b.to(wide), a.to(wide)) * scale
            delta = delta if weight == 1.0 else delta * weight
            result[name] = (result[name].to(wide) + delta).to(state[name].dtype)
    return result


def assert_holds(folder, state):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == state.keys()
    for name, tensor in state.items():
        found = checkpoint.read(name)
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name


def small_delta(folder, factor=1e-3):
    tensors = tiny.lora_tensors(Tiny(), names=("up", "down"))
    return tiny.write(folder, {k: v * factor if "lora_B" in k else v for k, v in tensors.items()})


def refused(tmp_path, base, adapter, error, match, **options):
    with pytest.raises(error, match=match) as caught:
        merge_to_disk(base, adapter, tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()
    return caught.value
