"""Quantised bases: an adapter is attached to them and runs; nothing is merged into integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import merge
from shardload.adapters import detach, load_adapter
from shardload.errors import UnsupportedError
from tests.adapters.tiny import PREFIX, TOKENS, Tiny, by_hand, config, lora_tensors, write


class Int8(nn.Module):
    """A linear layer in 8 bits, as GPTQ's and AWQ's: integers, a scale, and the two widths."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scales", scale)
        self.bias = linear.bias

    def weights(self):
        return self.qweight * self.scales

    def forward(self, x):
        return nn.functional.linear(x, self.weights(), self.bias)


class Int4(nn.Module):
    """ChatGLM2's: two numbers in a byte, and no widths."""

    def __init__(self, linear):
        super().__init__()
        self.weight_bit_width = 4
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 7
        codes = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter((codes[:, ::2] << 4) | (codes[:, 1::2] & 15), requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def weights(self):
        low = (self.weight << 4) >> 4
        return torch.stack([self.weight >> 4, low], dim=-1).flatten(1) * self.weight_scale

    def forward(self, x):
        return nn.functional.linear(x, self.weights(), self.bias)


class Int8Linear(nn.Linear):
    """A subclass of nn.Linear whose weight is integers, as bitsandbytes' Linear8bitLt and ChatGLM-6B's."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter(
            (linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False
        )
        self.register_buffer("scales", scale)
        self.bias = linear.bias

    def forward(self, input):  # noqa: A002
        return nn.functional.linear(input, self.weight * self.scales, self.bias)


def quantised(made):
    model = Tiny()
    for layer in model.layers:
        layer.up = made(layer.up)
    return model


@pytest.mark.parametrize("made", [Int8, Int4, Int8Linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attach_works_and_merge_declines(tmp_path, made, dtype):
    tensors = lora_tensors(Tiny(), dtype=dtype)
    model = quantised(made)
    classes = [type(module) for module in model.modules()]
    plain = model(TOKENS)
    wanted = by_hand(quantised(made), tensors, 3.0)
    report = load_adapter(model, write(tmp_path, tensors), trainable=True)
    assert report.modules == 6
    logits = model(TOKENS)
    assert (logits - wanted).abs().max() <= (0.05 if dtype == torch.bfloat16 else 1e-5) * wanted.abs().max()
    assert (logits - plain).abs().max() > 0.1
    logits.sum().backward()
    assert model.layers[0].up.lora_A["default"].weight.grad is not None
    with pytest.raises(UnsupportedError, match="quantised"):
        merge(model)
    detach(model, "default")
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(TOKENS), plain)


def test_dora_needs_the_weight(tmp_path):
    tensors = lora_tensors(Tiny(), names=("up",))
    for layer in (0, 1):
        tensors[f"{PREFIX}layers.{layer}.up.lora_magnitude_vector"] = torch.ones(12)
    with pytest.raises(UnsupportedError, match="DoRA needs the norms"):
        load_adapter(quantised(Int8), write(tmp_path, tensors, config(use_dora=True)))
