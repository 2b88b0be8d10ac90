"""`transformers.activations`: activation modules by the names that configs use."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class NewGELUActivation(nn.Module):
    """The tanh approximation of GELU, spelled out operation by operation as GPT-2 does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))


class FastGELUActivation(nn.Module):
    """The tanh approximation of GELU in its factored form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


class QuickGELUActivation(nn.Module):
    """The sigmoid approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        return x * torch.sigmoid(1.702 * x)


class GELUActivation(nn.Module):
    """GELU as torch computes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        return functional.gelu(x)


class PytorchGELUTanh(nn.Module):
    """The tanh approximation of GELU in torch's own kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        return functional.gelu(x, approximate="tanh")


class ReLUSquaredActivation(nn.Module):
    """The square of ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        return torch.square(functional.relu(x))


class _Activations(dict[str, type[nn.Module]]):
    """Names to activation classes; looking one up makes a module of it."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)()


ACT2CLS: dict[str, type[nn.Module]] = {
    "gelu": GELUActivation,
    "gelu_fast": FastGELUActivation,
    "gelu_new": NewGELUActivation,
    "gelu_pytorch_tanh": PytorchGELUTanh,
    "linear": nn.Identity,
    "mish": nn.Mish,
    "quick_gelu": QuickGELUActivation,
    "relu": nn.ReLU,
    "relu2": ReLUSquaredActivation,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
ACT2FN = _Activations(ACT2CLS)


def get_activation(activation_string: str) -> nn.Module:
    """Return a new activation module by its name; KeyError lists the known names."""
    if activation_string not in ACT2FN:
        raise KeyError(f"function {activation_string} not found in ACT2FN mapping {sorted(ACT2FN)}")
    return ACT2FN[activation_string]  # type: ignore[no-any-return]
