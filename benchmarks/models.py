"""A model of very many small modules, like the experts of a mixture-of-experts model."""

from __future__ import annotations

from typing import Any

from torch import nn


class ManyLinears(nn.Module):
    """A model of `config.layers` lists of `config.per_layer` square Linears of `config.width`, without bias."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = build(config)


def build(config: Any) -> nn.ModuleList:
    width = config.width
    return nn.ModuleList(
        nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(config.per_layer))
        for _ in range(config.layers)
    )
