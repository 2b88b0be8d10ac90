"""Linear layers: dropout in training alone, the bias of B."""

from __future__ import annotations

import torch
from torch import nn

from shardload.adapters import load_adapter
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    by_hand,
    config,
    error,
    lora_tensors,
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
