"""Packed weights on their way into a model: which model gets them plain, and what is said of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import shardload
from shardload.keymap.dequantised import Dequantised
from shardload.loading.packed import forget_quantiser, packed_notes, plain_for, refuse_undecided
from tests.dequantise.packed import folder_of

SETTINGS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.fixture
def checkpoint(tmp_path):
    tensors = {
        "layer.weight": torch.ones(8, 8).to(torch.float8_e4m3fn),
        "layer.weight_scale_inv": torch.ones(1, 1),
        "norm.weight": torch.ones(8),
    }
    return shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, SETTINGS))


def test_a_plain_model_gets_plain_weights_where_a_dtype_is_asked_for(checkpoint):
    slots = {"layer.weight", "norm.weight"}
    assert plain_for(checkpoint, slots, None) is checkpoint
    plain = plain_for(checkpoint, slots, torch.bfloat16)
    assert isinstance(plain.tensors["layer.weight"], Dequantised)
    assert set(plain.tensors) == slots
    (note,) = packed_notes(plain)
    assert note == "1 weight is stored packed (fp8), and dequantised to bfloat16"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_model_with_places_for_the_parts_gets_them_packed(checkpoint, prefix):
    slots = {f"{prefix}{name}" for name in checkpoint.tensors}
    assert plain_for(checkpoint, slots, torch.bfloat16) is checkpoint


def test_the_choices_are_said(checkpoint):
    with pytest.raises(shardload.UnsupportedError, match="in which dtype") as caught:
        refuse_undecided(checkpoint)
    assert f"shardload convert {checkpoint.label} -o plain --dtype bfloat16" in caught.value.cure


def test_a_config_forgets_its_quantiser():
    model = SimpleNamespace(config=SimpleNamespace(quantization_config=SETTINGS, hidden_size=8))
    forget_quantiser(model)
    assert vars(model.config) == {"hidden_size": 8}
    forget_quantiser(SimpleNamespace())


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_weights_of_layers_that_hold_them_turned_are_turned(tmp_path, prefix):
    """A quantiser packs what a Linear would hold, also of a Conv1D; a square shows nothing by its shape."""
    from tests.dequantise.test_bitsandbytes import plain_reading

    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 64))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = nn.Module()
            self.transformer.c_proj, self.transformer.linear = Conv1D(), nn.Linear(64, 64, bias=False)

    tensors, wanted = plain_reading((64, 64))
    parts = {name.removeprefix("layer."): tensor for name, tensor in tensors.items()}
    stored = {f"{prefix}{layer}.{name}": t for layer in ("c_proj", "linear") for name, t in parts.items()}
    folder = folder_of(tmp_path / "packed", stored, {"quant_method": "bitsandbytes"}, model_type="gpt2")
    shell = shardload.build_shell(Model)
    key_map = {} if prefix else {"{...}": "transformer.{...}"}
    shardload.fill(shell, shardload.open_checkpoint(folder), dtype="float32", key_map=key_map)
    inner = shell.model.transformer
    assert torch.equal(inner.c_proj.weight, wanted.float().t())
    assert torch.equal(inner.linear.weight, wanted.float())
    plain = shardload.dequantised(shardload.open_checkpoint(folder), "float32")
    assert torch.equal(plain.read(f"{prefix}c_proj.weight"), wanted.float().t())
    assert torch.equal(plain.read(f"{prefix}linear.weight"), wanted.float())
