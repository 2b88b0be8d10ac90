"""Linear layers: dropout in training alone, the bias of B."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import attach_lora
from shardload.adapters import load_adapter
from shardload.adapters.layers.linear import Linear, LinearTerm
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    by_hand,
    config,
    error,
    lora_tensors,
    randomised,
    write,
)


def test_dropout_only_while_training(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model)
    load_adapter(model, write(tmp_path, tensors, config(lora_dropout=0.5)))
    wanted = by_hand(Tiny(), tensors, 3.0)
    assert error(model(TOKENS), wanted) <= 1e-5
    model.train()
    torch.manual_seed(0)
    assert error(model(TOKENS), wanted) > 0.01


def test_lora_bias(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model, names=("q",))
    extra = {
        key.replace("lora_B.weight", "lora_B.bias"): torch.full((8,), 0.5)
        for key in tensors
        if "lora_B" in key
    }
    load_adapter(model, write(tmp_path, tensors | extra, config(lora_bias=True)))
    reference = Tiny()
    for layer in reference.layers:
        layer.q.bias = nn.Parameter(torch.full((8,), 1.5))
    assert error(model(TOKENS), by_hand(reference, tensors, 3.0)) <= 1e-5


@pytest.mark.parametrize("dora", [False, True])
def test_the_output_is_that_of_the_changed_weight(dora):
    model = nn.Sequential(nn.Linear(5, 7)).double().eval()
    attach_lora(model, 2, 6, ["0"], use_dora=dora, init=False)
    layer = randomised(model)[0]
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        term, factors = layer.lora_terms["default"], layer.lora_factors("default")
        assert type(term) is LinearTerm
        wanted = nn.functional.linear(x, term.changed(layer.weight, factors), layer.bias)
        torch.testing.assert_close(model(x), wanted)
    assert Linear().features(layer) == (7, 5)
    assert Linear().shapes(layer, 2) == {"a": (2, 5), "b": (7, 2), "bias": (7,), "magnitude": (7,)}
