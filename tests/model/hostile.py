"""A class that does what published constructors do."""

from __future__ import annotations

import torch
from torch import nn


class Hostile(nn.Module):
    """Everything that published constructors do to parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = nn.utils.skip_init(nn.Linear, 6, 6, dtype=torch.float16)
        self.halved = nn.Linear(6, 6).half()
        self.moved = nn.Linear(6, 6).to("cpu")
        self.cast = nn.LayerNorm(6).to(torch.bfloat16)
        self.from_values = nn.Parameter(torch.ones(3, 3))
        self.listed = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(2)])
        self.tied = self.skipped.weight
        self.emptied = nn.Linear(6, 6, device="meta").to_empty(device="cpu")
        nn.init.normal_(self.from_values)
        self.moved.weight.data.normal_(0.0, 0.02)
        inv_freq = 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8))
        self.register_buffer("inv_freq", inv_freq)
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)), persistent=False)
        self.cos_cached = torch.cos(inv_freq)
