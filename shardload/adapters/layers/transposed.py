"""GPT-2's Conv1D: a linear layer with a transposed weight, (in, out). Recognised by its structure, not its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from shardload.adapters.layers.layer import LoraLayer
from shardload.adapters.layers.linear import Linear, LinearTerm

if TYPE_CHECKING:
    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import Factors, LoraTerm, Shape


@dataclass(frozen=True)
class TransposedTerm(LinearTerm):
    """A is (rank, in), B is (out, rank), the base weight (in, out)."""

    dora_axis: ClassVar[int | None] = 1

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * (B @ A).T, or some rows of it."""
        a = factors.a if rows is None else factors.a[:, rows]
        return (torch.mm(factors.b, a) * self.scale).T

    def base_product(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return x @ weight."""
        return x @ base


class LoraTransposed(LoraLayer):
    """A transposed linear layer with adapters."""


class Transposed(Linear):
    """A module with a weight (in, out), a bias (out,), and the width in `nf`: transformers' Conv1D and its like."""

    name = "Conv1D (transposed Linear)"
    host = LoraTransposed

    def fits(self, module: nn.Module, entry: LoraEntry | None = None) -> bool:
        """Return whether the module has the weight, bias and `nf` of a transposed linear layer."""
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        width = getattr(module, "nf", None)
        if not isinstance(width, int) or weight is None or weight.dim() != 2 or isinstance(module, nn.Linear):
            return False
        return weight.shape[1] == width and (bias is None or tuple(bias.shape) == (width,))

    def term(self, module: nn.Module, rank: int, scale: float, dropout: float) -> LoraTerm:
        """Return a TransposedTerm."""
        return TransposedTerm(rank, scale, dropout)

    def features(self, module: nn.Module) -> tuple[int, int]:
        """Return (out, in)."""
        weight: Any = module.weight
        return weight.shape[1], weight.shape[0]
