"""A model of very many small modules, as mixture-of-experts checkpoints have them."""

from __future__ import annotations

from typing import Any

from torch import nn


class ManyLinears(nn.Module):
    """`config.layers` lists of `config.per_layer` square Linears without bias, of `config.width`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = build(config)


def build(config: Any) -> nn.ModuleList:
    width = config.width
    return nn.ModuleList(
        nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(config.per_layer))
        for _ in range(config.layers)
    )
