"""The class swap: what Python does with an adapted layer."""

from __future__ import annotations

import copy
import io
import pickle
import time

import pytest
import torch
from torch import nn

from shardload.adapters import detach, load_adapter
from shardload.adapters.layers import LoraLayer, lora_class
from shardload.adapters.layers.linear import LoraLinear
from tests.adapters.tiny import TOKENS, Scaled, Tiny, lora_tensors, write


@pytest.fixture
def model(tmp_path):
    model = Tiny()
    load_adapter(model, write(tmp_path, lora_tensors(model)), trainable=True)
    return model


def test_one_class_for_each_base_class():
    assert lora_class(LoraLinear, nn.Linear) is LoraLinear
    assert lora_class(LoraLinear, Scaled) is lora_class(LoraLinear, Scaled)
    assert lora_class(LoraLinear, Scaled).__mro__[1:5] == (LoraLinear, LoraLayer, Scaled, nn.Linear)


class Slotted(nn.Linear):
    __slots__ = ("extra",)


def test_a_class_with_slots(tmp_path):
    model = Tiny()
    model.layers[0].q = Slotted(8, 8, bias=False).eval()
    model.layers[0].q.extra = 3
    load_adapter(model, write(tmp_path, lora_tensors(model)))
    assert model.layers[0].q.extra == 3
    detach(model, "default")
    assert type(model.layers[0].q) is Slotted


def dumped(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, dumped, saved])
def test_copies_work_and_are_apart(model, again):
    other = again(model)
    logits = model(TOKENS)
    assert torch.equal(other(TOKENS), logits)
    assert type(other.layers[0].down) is lora_class(LoraLinear, Scaled)
    detach(other, "default")
    assert type(other.layers[0].down) is Scaled
    assert torch.equal(other(TOKENS), Tiny()(TOKENS))
    assert torch.equal(model(TOKENS), logits)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(model, protocol):
    layer = pickle.loads(pickle.dumps(model.layers[0].up, protocol))
    x = torch.randn(2, 8)
    assert torch.equal(layer(x), model.layers[0].up(x))


def test_a_shallow_copy_of_a_layer(model):
    layer = copy.copy(model.layers[0].down)
    x = torch.randn(2, 12)
    assert torch.equal(layer(x), model.layers[0].down(x))


def test_state_dict_goes_into_another_adapted_model(model, tmp_path):
    other = Tiny()
    load_adapter(other, write(tmp_path / "other", lora_tensors(other, seed=5)))
    assert not torch.equal(other(TOKENS), model(TOKENS))
    other.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(other(TOKENS), model(TOKENS))


def test_moving_the_model_moves_the_adapter(model):
    logits = model(TOKENS)
    model.double()
    assert model.layers[0].q.lora_A["default"].weight.dtype == torch.float64
    assert torch.allclose(model(TOKENS).float(), logits, atol=1e-5)


def test_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(TOKENS)
    assert torch.allclose(logits.float(), model(TOKENS), atol=0.2)


def test_checkpointing(model):
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(2, 8)
    plain = model.layers[0](x)
    again = checkpoint(model.layers[0], x, use_reentrant=False)
    assert torch.equal(plain, again)
    again.sum().backward()
    assert model.layers[0].q.lora_A["default"].weight.grad is not None


def test_many_layers_attach_in_time_that_grows_with_their_number(tmp_path):
    def seconds(count):
        model = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(count))
        tensors = {}
        for n in range(count):
            tensors[f"base_model.model.{n}.lora_A.weight"] = torch.ones(2, 4)
            tensors[f"base_model.model.{n}.lora_B.weight"] = torch.ones(4, 2)
        folder = write(tmp_path / str(count), tensors)
        start = time.perf_counter()
        load_adapter(model, folder)
        load_adapter(model, folder, name="second")
        return time.perf_counter() - start

    seconds(50)
    assert seconds(1600) < 16 * seconds(200) + 0.5
