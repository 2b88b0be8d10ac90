"""Every kind of module that torch has, and some odd ones, each with an input where there is one."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune


def quietly(make):
    """Build what torch calls deprecated or experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(12)])
        self.named = nn.ParameterDict(
            {"a": nn.Parameter(torch.randn(4)), "b_c": nn.Parameter(torch.randn(4))}
        )

    def forward(self, x):
        return x * self.many[3] + self.named["a"] * self.many[11]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x))


class Odd(nn.Module):
    """No parameter, no buffer, 0 dimensions, 0 elements, complex, bool, a large integer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("none", None)
        self.register_buffer("nothing", None)
        self.scalar = nn.Parameter(torch.tensor(3.0))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.complex = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("large", torch.tensor(2**62))
        self.register_buffer("no_ids", torch.empty(0, dtype=torch.int64))
        self.packed = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return x * self.scalar


class Remembering(nn.Module):
    """Computes something whenever its weight is set."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.linear = nn.Linear(4, 4)

    def __setattr__(self, name, value) -> None:
        super().__setattr__(name, value)
        if name == "weight":
            self.doubled = value * 2

    def forward(self, x):
        return self.linear(x) * self.doubled


class Slotted(nn.Module):
    __slots__ = ("factor",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.factor = 3

    def forward(self, x):
        return x * self.weight * self.factor


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    prune.random_unstructured(model[0], "weight", 0.5)
    return model


def after(wrap) -> nn.Module:
    return quietly(lambda: nn.Sequential(wrap(nn.Linear(4, 5)), nn.Linear(5, 2)))


def rows():
    return (torch.randn(3, 4),)


def sequence():
    return (torch.randn(2, 3, 4),)


def pair():
    return torch.randn(2, 3, 8), torch.randn(2, 3, 8)


KINDS = {
    "ParameterList": (Lists, rows),
    "LSTM": (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True), sequence),
    "LSTM with projection": (lambda: nn.LSTM(4, 5, proj_size=3), None),
    "GRU": (lambda: nn.GRU(4, 5), sequence),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), lambda: sequence() * 3),
    "MultiheadAttention, all": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3, vdim=5), None),
    "Transformer": (lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), pair),
    "BatchNorm": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)
        ),
        rows,
    ),
    "InstanceNorm": (lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), None),
    "Conv": (
        lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        lambda: (torch.randn(1, 3, 5, 5),),
    ),
    "weight_norm": (lambda: after(nn.utils.weight_norm), rows),
    "weight_norm, parametrized": (lambda: after(parametrizations.weight_norm), rows),
    "spectral_norm": (lambda: after(nn.utils.spectral_norm), rows),
    "spectral_norm, parametrized": (lambda: after(parametrizations.spectral_norm), rows),
    "pruned": (pruned, rows),
    "compiled": (lambda: torch.compile(nn.Linear(4, 4), backend="eager"), None),
    "shared under two paths": (Shared, rows),
    "odd": (Odd, rows),
    "own __setattr__": (Remembering, rows),
    "__slots__": (Slotted, rows),
    "double": (lambda: nn.Linear(4, 4).double(), None),
    "frozen": (lambda: nn.Linear(4, 4).requires_grad_(False), rows),
}
