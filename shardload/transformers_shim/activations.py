"""`transformers.activations`: activation modules by the names that configs use."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class NewGELUActivation(nn.Module):
    """The tanh approximation of GELU, spelled out operation by operation."""

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
    """GELU as torch computes it, or spelled out with the error function."""

    def __init__(self, use_gelu_python: bool = False) -> None:
        super().__init__()
        self.use_gelu_python = use_gelu_python

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        if self.use_gelu_python:
            return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
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


class ClippedGELUActivation(nn.Module):
    """GELU, kept between two bounds."""

    def __init__(self, min: float, max: float) -> None:  # noqa: A002 - the names are the interface
        super().__init__()
        self.min, self.max = min, max

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        return torch.clip(functional.gelu(x), self.min, self.max)


class AccurateGELUActivation(nn.Module):
    """A tanh approximation of GELU, with the operations in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.precomputed_constant = math.sqrt(2 / math.pi)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        inner = self.precomputed_constant * (x + 0.044715 * torch.pow(x, 3))
        return 0.5 * x * (1 + torch.tanh(inner))


class LaplaceActivation(nn.Module):
    """The distribution function of a normal distribution, by default of mean 0.707 and deviation 0.282."""

    def forward(self, x: torch.Tensor, mu: float = 0.707107, sigma: float = 0.282095) -> torch.Tensor:
        """Return the activation, of the input's shape and dtype."""
        return 0.5 * (1.0 + torch.erf((x - mu).div(sigma * math.sqrt(2.0))))


class LinearActivation(nn.Module):
    """The identity."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input."""
        return x


class MishActivation(nn.Mish):
    """Mish as torch computes it."""


SiLUActivation = nn.SiLU


class ClassInstantier(dict[str, Any]):
    """A table of names and activation classes, or (class, keyword arguments); a lookup makes a new module."""

    def __getitem__(self, name: str) -> Any:
        content = super().__getitem__(name)
        cls, keywords = content if isinstance(content, tuple) else (content, {})
        return cls(**keywords)


ACT2CLS: dict[str, Any] = {
    "gelu": GELUActivation,
    "gelu_10": (ClippedGELUActivation, {"min": -10, "max": 10}),
    "gelu_accurate": AccurateGELUActivation,
    "gelu_fast": FastGELUActivation,
    "gelu_new": NewGELUActivation,
    "gelu_pytorch_tanh": PytorchGELUTanh,
    "gelu_python": (GELUActivation, {"use_gelu_python": True}),
    "laplace": LaplaceActivation,
    "linear": LinearActivation,
    "mish": MishActivation,
    "prelu": nn.PReLU,
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
ACT2FN = ClassInstantier(ACT2CLS)


def get_activation(activation_string: str) -> nn.Module:
    """Return a new activation module by its name; KeyError lists the known names."""
    if activation_string not in ACT2FN:
        raise KeyError(f"function {activation_string} not found in ACT2FN mapping {sorted(ACT2FN)}")
    return ACT2FN[activation_string]  # type: ignore[no-any-return]


gelu_python = get_activation("gelu_python")
gelu_new = get_activation("gelu_new")
gelu = get_activation("gelu")
gelu_fast = get_activation("gelu_fast")
quick_gelu = get_activation("quick_gelu")
silu = get_activation("silu")
mish = get_activation("mish")
linear_act = get_activation("linear")
