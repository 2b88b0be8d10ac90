"""nn.MultiheadAttention: the fused input projection, and the output projection, whose forward is never called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from shardload.adapters.layers.layer import LayerKind, LoraLayer
from shardload.adapters.layers.linear import Linear, LinearTerm
from shardload.adapters.layers.weights import changed_bias, changed_weights, weights_replaced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.layer import Reading
    from shardload.adapters.layers.term import Factors, LoraTerm, Shape


@dataclass(frozen=True)
class InputTerm(LinearTerm):
    """The fused input projection: A is (rank, width), B is (3 * width, rank); the bias of B is never added."""

    attribute: str = "in_proj_weight"

    adds_bias: ClassVar[bool] = False


@dataclass(frozen=True)
class OutputTerm(LinearTerm):
    """The output projection: A is (rank, width), B is (width, rank).

    PEFT merges both projections for every forward, and adds this one's delta twice (once in MultiheadAttention.merge,
    once more in the layer's own merge); merge_and_unload does the same. Every adapter from PEFT was trained so.
    """

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return 2 * scale * B @ A, or some rows of it."""
        return super().delta(factors, shape, rows) * 2


class LoraAttention(LoraLayer, nn.MultiheadAttention):
    """An nn.MultiheadAttention with adapters on its projections."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output with its weights changed by the active adapters."""
        weights = list(changed_weights(self))
        if isinstance(self.out_proj, LoraLayer):
            weights += changed_weights(self.out_proj)
            weights += changed_bias(self.out_proj)
        with weights_replaced(weights):
            return super(LoraLayer, self).forward(*args, **kwargs)

    def lora_changes(self, name: str) -> Iterator[tuple[nn.Module, LoraTerm, Factors]]:
        """Yield the fused projection without the bias of B, which is kept and never added."""
        for module, term, factors in super().lora_changes(name):
            yield module, term, replace(factors, bias=None)


LoraAttention.lora_base = nn.MultiheadAttention
LoraAttention.lora_host = LoraAttention


class Attention(LayerKind):
    """The fused input projection (q, k, v) of nn.MultiheadAttention."""

    name = "MultiheadAttention"
    host = LoraAttention
    modules = (nn.MultiheadAttention,)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse three separate projections and DoRA, which PEFT does not define either."""
        if module._parameters.get("in_proj_weight") is None:
            return (
                "is a MultiheadAttention with keys or values of another width, which has no fused projection"
            )
        if entry.magnitude is not None:
            return "is a MultiheadAttention, for which DoRA is not defined"
        return None

    def read(self, module: nn.Module, entry: LoraEntry) -> Reading:
        """Read A (rank, width), B (3 * width, rank)."""
        note = "" if entry.bias is None else "its bias is not added, as in PEFT"
        return replace(super().read(module, entry), note=note)

    def shapes(self, module: nn.Module, rank: int) -> dict[str, Shape]:
        """Return A (rank, width), B (3 * width, rank), bias (3 * width,)."""
        attention: Any = module
        width = attention.embed_dim
        return {"a": (rank, width), "b": (3 * width, rank), "bias": (3 * width,)}

    def term(self, module: nn.Module, rank: int, scale: float, dropout: float) -> LoraTerm:
        """Return an InputTerm; PEFT applies no dropout here."""
        return InputTerm(rank, scale)


class AttentionOutput(Linear):
    """The output projection of nn.MultiheadAttention: a Linear whose forward is never called."""

    name = "output projection of MultiheadAttention"
    modules = (NonDynamicallyQuantizableLinear,)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse DoRA."""
        if entry.magnitude is not None:
            return "is the output projection of a MultiheadAttention, for which DoRA is not defined"
        return super().unfit(module, entry)

    def read(self, module: nn.Module, entry: LoraEntry) -> Reading:
        """Read A (rank, width), B (width, rank)."""
        return replace(super().read(module, entry), note="added twice, as PEFT does")

    def shapes(self, module: nn.Module, rank: int) -> dict[str, Shape]:
        """Return A (rank, width), B (width, rank), bias (width,)."""
        return {part: shape for part, shape in super().shapes(module, rank).items() if part != "magnitude"}

    def term(self, module: nn.Module, rank: int, scale: float, dropout: float) -> LoraTerm:
        """Return an OutputTerm; PEFT applies no dropout here."""
        return OutputTerm(rank, scale)
