"""Packed weights on their way into a model: which model gets them plain, and what is said of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

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
