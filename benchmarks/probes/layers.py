"""Makes models of linear layers, and LoRA files for them as PEFT writes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.writing import Output, OutputShard, write_output
from shardload.writing.model_output import tensor_output

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, RANK = 64, 8


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        for name in "qkvo":
            self.add_module(name, nn.utils.skip_init(nn.Linear, width, width, bias=False))


class Layers(nn.Module):
    """A model of `modules` Linears, four per layer, whose weights are zeros."""

    def __init__(self, modules, width=WIDTH):
        super().__init__()
        self.layers = nn.ModuleList(Attention(width) for _ in range(modules // 4))
        for parameter in self.parameters():
            parameter.data.zero_()

    def forward(self, x):
        for layer in self.layers:
            x = layer.o(layer.v(layer.k(layer.q(x))))
        return x


def write_adapter(folder: Path, modules: int, seed: int, width: int = WIDTH, rank: int = RANK) -> Path:
    """Write an adapter for all layers of `Layers(modules, width)` and return its folder."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for number in range(modules // 4):
        for name in "qkvo":
            key = f"base_model.model.layers.{number}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, width, generator=random) / width
            tensors[f"{key}.lora_B.weight"] = torch.randn(width, rank, generator=random)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": list("qkvo")}
    weights = tuple(tensor_output(name, tensor) for name, tensor in tensors.items())
    beside = {"adapter_config.json": json.dumps(config).encode()}
    write_output(folder, Output((OutputShard("adapter_model.safetensors", weights),), beside=beside))
    return folder
