"""Small models, each with one thing that loaders of sharded models get wrong."""

from __future__ import annotations

import torch
from torch import nn

from shardload import KeyMap


class Block(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Tied(nn.Module):
    """An output layer that is the embedding; 516 rows."""

    rows = 516

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(self.rows, 32)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, self.rows, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Uneven(Tied):
    """Rows that no number of ranks divides, and an output layer of its own."""

    rows = 515

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(torch.randn(self.rows, 32))


class Experts(Tied):
    """Six experts in one tensor, and a vector of three: over four ranks some hold nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(6, 32, 8))
        self.gains = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return super().forward(x) + self.experts.sum() + self.gains.sum()


class Fused(Tied):
    """Query, key and value in one weight with sizes of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 32 + 8 + 8)

    def forward(self, x):
        return super().forward(x) + self.qkv(self.embed(x)).sum(-1, keepdim=True)


class Buffers(Tied):
    """A batch norm's buffers, a computed one, and an integer counter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)
        self.norm.running_mean.normal_()
        self.norm.num_batches_tracked += 7
        self.register_buffer("positions", torch.arange(6.0), persistent=False)

    def forward(self, x):
        return super().forward(x) + self.norm.running_mean.sum() + self.positions.sum()


class Renamed(Fused):
    """Stored under other names, with query, key and value apart and one weight transposed."""

    key_map = (
        KeyMap()
        .rename("old.{...}", "{...}")
        .cat(["q.weight", "k.weight", "v.weight"], "qkv.weight", sizes=[32, 8, 8])
        .cat(["q.bias", "k.bias", "v.bias"], "qkv.bias", sizes=[32, 8, 8])
        .transpose("layers.{}.up.weight")
    )


class OwnLoader(Tied):
    """A module that loads itself: its stored weight is the negative."""

    class Negated(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *rest):
            state[prefix + "weight"] = -state[prefix + "weight"]
            super()._load_from_state_dict(state, prefix, *rest)

    def __init__(self) -> None:
        super().__init__()
        self.own = self.Negated(32, 18)

    def forward(self, x):
        return super().forward(x) + self.own(self.embed(x)).sum(-1, keepdim=True)


NETS = {kind.__name__: kind for kind in (Tied, Uneven, Experts, Fused, Buffers, Renamed, OwnLoader)}


def plain_uneven(_config: object) -> Uneven:
    """Make the net from any config, as a command line names it."""
    return Uneven()
