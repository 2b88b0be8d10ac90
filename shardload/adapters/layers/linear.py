"""nn.Linear and its subclasses, quantised ones included: y + scale * B(A(x))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from shardload.adapters.layers.layer import LayerKind, LoraLayer
from shardload.adapters.layers.term import LoraTerm, dora_factor, whole_beside

if TYPE_CHECKING:
    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import AdaptedLayer, Factors, Shape


@dataclass(frozen=True)
class LinearTerm(LoraTerm):
    """A is (rank, in), B is (out, rank), the base weight (out, in)."""

    dora_axis: ClassVar[int | None] = 0

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * B @ A, or some rows of it."""
        b = factors.b if rows is None else factors.b[rows]
        return torch.mm(b, factors.a) * self.scale

    def add(
        self, layer: AdaptedLayer, name: str, weight: float, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Return out + weight * scale * B(A(dropout(x))); with DoRA, out is rescaled too."""
        # Straight from the tables: nn.Module's attribute look-up is a third of an adapter's cost on a small layer.
        modules = layer._modules
        up: Any = modules["lora_B"]._modules[name]  # type: ignore[union-attr]
        down: Any = modules["lora_A"]._modules[name].weight  # type: ignore[union-attr]
        over, bias = up.weight, up.bias
        if type(x) is not torch.Tensor:
            down, over, bias = (whole_beside(x, each) for each in (down, over, bias))
        x = x if x.dtype == down.dtype else x.to(down.dtype)
        dropped = bool(self.dropout) and layer.training
        if dropped:
            x = functional.dropout(x, self.dropout)
        delta = functional.linear(functional.linear(x, down), over, bias)
        magnitudes = modules.get("lora_magnitude_vector")
        if magnitudes is None or name not in magnitudes._modules:
            return torch.add(out, delta, alpha=self.scale * weight)
        return self._add_dora(layer, name, weight, x if dropped else None, out, delta)

    def _add_dora(
        self,
        layer: AdaptedLayer,
        name: str,
        weight: float,
        dropped: torch.Tensor | None,
        out: torch.Tensor,
        delta: torch.Tensor,
    ) -> torch.Tensor:
        """Return out + weight * ((m - 1) * (out without bias) + m * scale * delta), m = magnitude / norm."""
        module: Any = layer
        base = module.weight
        factor = dora_factor(layer, name, self, base)
        if dropped is not None:
            # PEFT computes the base's part from the same dropped input.
            plain = self.base_product(dropped, base.to(dropped.dtype))
        else:
            plain = out if module.bias is None else out - module.bias
        return torch.add(out, (factor - 1) * plain + factor * self.scale * delta, alpha=weight)

    def base_product(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return the base layer's output without bias."""
        return functional.linear(x, base)


class LoraLinear(LoraLayer, nn.Linear):
    """An nn.Linear with adapters."""


LoraLinear.lora_base = nn.Linear
LoraLinear.lora_host = LoraLinear


class Linear(LayerKind):
    """nn.Linear and its subclasses."""

    name = "Linear"
    host: ClassVar[type[LoraLayer]] = LoraLinear
    modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse DoRA where the weight is quantised: it needs the norms."""
        weight = getattr(module, "weight", None)
        if entry.magnitude is not None and not (
            isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.dim() == 2
        ):
            return f"is a quantised {type(module).__name__}: DoRA needs the norms of its weight"
        return None

    def shapes(self, module: nn.Module, rank: int) -> dict[str, Shape]:
        """Return A (rank, in), B (out, rank), bias and magnitude (out,)."""
        out, into = self.features(module)
        return {"a": (rank, into), "b": (out, rank), "bias": (out,), "magnitude": (out,)}

    def term(self, module: nn.Module, rank: int, scale: float, dropout: float) -> LoraTerm:
        """Return a LinearTerm."""
        return LinearTerm(rank, scale, dropout)

    def features(self, module: nn.Module) -> tuple[int, int]:
        """Return (out, in)."""
        linear: Any = module
        return linear.out_features, linear.in_features
