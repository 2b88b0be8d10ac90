"""nn.Linear and its subclasses, quantised ones included: y + scale * B(A(x))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from shardload.adapters.layers.layer import (
    Factors,
    LoraLayer,
    LoraTerm,
    Reading,
    Shape,
    dora_factor,
)

if TYPE_CHECKING:
    from shardload.adapters.adapter import LoraEntry


@dataclass(frozen=True)
class LinearTerm(LoraTerm):
    """A is (rank, in), B is (out, rank), the base weight (out, in)."""

    dora_axis: ClassVar[int | None] = 0

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * B @ A, or some rows of it."""
        b = factors.b if rows is None else factors.b[rows]
        return torch.mm(b, factors.a) * self.scale

    def add(
        self, layer: LoraLayer, name: str, weight: float, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Return out + weight * scale * B(A(dropout(x))); with DoRA, out is rescaled too."""
        # Straight from the tables: nn.Module's attribute look-up is a third of what an adapter costs a small layer.
        modules = layer._modules
        up: Any = modules["lora_B"]._modules[name]  # type: ignore[union-attr]
        down: Any = modules["lora_A"]._modules[name].weight  # type: ignore[union-attr]
        x = x if x.dtype == down.dtype else x.to(down.dtype)
        dropped = bool(self.dropout) and layer.training
        if dropped:
            x = functional.dropout(x, self.dropout)
        delta = functional.linear(functional.linear(x, down), up.weight, up.bias)
        magnitudes = modules.get("lora_magnitude_vector")
        if magnitudes is None or name not in magnitudes._modules:
            return torch.add(out, delta, alpha=self.scale * weight)
        return self._add_dora(layer, name, weight, x if dropped else None, out, delta)

    def _add_dora(
        self,
        layer: LoraLayer,
        name: str,
        weight: float,
        dropped: torch.Tensor | None,
        out: torch.Tensor,
        delta: torch.Tensor,
    ) -> torch.Tensor:
        """Return out + weight * ((m - 1) * (out without bias) + m * scale * delta), m = magnitude / norm."""
        base: Any = layer.weight
        factor = dora_factor(layer, name, self, base)
        if dropped is not None:
            # PEFT computes the base's part from the same dropped input.
            plain = self.base_product(dropped, base.to(dropped.dtype))
        else:
            bias: Any = layer.bias
            plain = out if bias is None else out - bias
        return torch.add(out, (factor - 1) * plain + factor * self.scale * delta, alpha=weight)

    def base_product(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return the base layer's output without bias."""
        return functional.linear(x, base)


class LoraLinear(LoraLayer, nn.Linear):
    """An nn.Linear with adapters."""


LoraLinear.lora_base = nn.Linear
LoraLinear.lora_host = LoraLinear


class Linear:
    """nn.Linear and its subclasses."""

    name = "Linear"

    def host_of(self, module: nn.Module) -> type[LoraLayer]:
        """Return LoraLinear."""
        return LoraLinear

    def fits(self, module: nn.Module, entry: LoraEntry | None = None) -> bool:
        """Whether it is an nn.Linear, or a class made of one."""
        return isinstance(module, nn.Linear)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """DoRA needs the weight itself."""
        weight = getattr(module, "weight", None)
        if entry.magnitude is not None and not (
            isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.dim() == 2
        ):
            return f"is a quantised {type(module).__name__}: DoRA needs the norms of its weight"
        return None

    def read(self, module: nn.Module, entry: LoraEntry) -> Reading:
        """Read A (rank, in), B (out, rank); `entry.columns` swaps both."""
        rank = entry.rank_by_shapes()
        shapes = self.shapes(module, rank)
        if entry.columns:
            shapes = {part: shape[::-1] if part in "ab" else shape for part, shape in shapes.items()}
        term = self.term(module, rank, entry.scaling.of(rank), entry.dropout)
        return Reading(term, shapes, transposed=entry.columns)

    def shapes(self, module: nn.Module, rank: int) -> dict[str, Shape]:
        """Return A (rank, in), B (out, rank), bias and magnitude (out,)."""
        out, into = self._features(module)
        return {"a": (rank, into), "b": (out, rank), "bias": (out,), "magnitude": (out,)}

    def term(self, module: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> LoraTerm:
        """Return a LinearTerm."""
        return LinearTerm(rank, scale, dropout)

    def unmergeable(self, module: nn.Module, term: LoraTerm) -> str | None:
        """Refuse a weight that is stored in fewer bits: it has no room for a delta."""
        weight = getattr(module, "weight", None)
        if not (isinstance(weight, torch.Tensor) and weight.is_floating_point()):
            return f"is a quantised {type(module).__name__}: merge into the full-precision base instead"
        return None

    def _features(self, module: nn.Module) -> tuple[int, int]:
        linear: Any = module
        return linear.out_features, linear.in_features
