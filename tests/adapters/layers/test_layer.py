"""The adapted class: pickles, copies, devices, autocast, checkpointing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from shardload import (
    attach_lora,
    delete_adapter,
    disable_adapter,
    load_adapter,
    set_adapter,
    trainable_parameters,
)
from shardload.adapters import detach
from shardload.adapters.layers import LoraLayer, lora_class
from shardload.adapters.layers.linear import LoraLinear
from tests.adapters.tiny import (
    TOKENS,
    Checkpointed,
    Scaled,
    Tiny,
    dumped,
    lora_tensors,
    randomised,
    saved,
    write,
)


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


@pytest.mark.parametrize("again", [copy.deepcopy, dumped, saved])
def test_a_copy_trains_apart(again):
    model = Checkpointed(reentrant=True).train()
    attach_lora(model, 2, 4, ["q", "up"], modules_to_save=["score"], merge_on_eval=True)
    attach_lora(model, 3, 4, ["down"], name="second")
    other = again(model)
    assert trainable_parameters(other) == trainable_parameters(model)
    wanted = model(TOKENS)
    optimizer = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.5)
    other.gradient_checkpointing = True
    other(TOKENS).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(other(TOKENS), wanted)
    assert torch.equal(model(TOKENS), wanted)
    with disable_adapter(other):
        assert torch.equal(other(TOKENS), Tiny()(TOKENS))
    set_adapter(other, "second")
    delete_adapter(other, "default")
    delete_adapter(other, "second")
    assert torch.equal(other(TOKENS), Tiny()(TOKENS))


def test_autocast_trains_factors_in_float32():
    model = Tiny(torch.bfloat16).train()
    attach_lora(model, 2, 4, ["q", "up"])
    randomised(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(TOKENS).float().square().sum()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in trained)
