"""nn.Embedding: rows of A.T are looked up, multiplied by B, and scaled as the module scales its own rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from shardload.adapters.layers.layer import LayerKind, LoraLayer
from shardload.adapters.layers.term import LoraTerm, dora_factor

if TYPE_CHECKING:
    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import AdaptedLayer, Factors, Shape


@dataclass(frozen=True)
class EmbeddingTerm(LoraTerm):
    """A is (rank, vocabulary), B is (width, rank), the base weight (vocabulary, width). There is no dropout."""

    dora_axis: ClassVar[int | None] = 1

    def delta(self, factors: Factors, shape: Shape, rows: slice | None = None) -> torch.Tensor:
        """Return scale * (B @ A).T, or some rows of it."""
        a = factors.a if rows is None else factors.a[:, rows]
        return torch.mm(factors.b, a).T * self.scale

    def add(
        self, layer: AdaptedLayer, name: str, weight: float, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Return out + weight * scale * (rows of A.T) @ B.T, times the module's `embed_scale` where it has one."""
        modules = layer._modules
        down: Any = modules["lora_A"]._modules[name].weight  # type: ignore[union-attr]
        up: Any = modules["lora_B"]._modules[name].weight  # type: ignore[union-attr]
        base: Any = layer
        rows = functional.embedding(x, down.T, base.padding_idx)
        delta = functional.linear(rows, up) * self.scale
        factor = getattr(layer, "embed_scale", None)
        if factor is not None:
            delta = delta * (factor.to(delta.dtype) if isinstance(factor, torch.Tensor) else factor)
        magnitudes = modules.get("lora_magnitude_vector")
        if magnitudes is None or name not in magnitudes._modules:
            return torch.add(out, delta, alpha=weight)
        ratio = dora_factor(layer, name, self, base.weight)
        return torch.add(out, (ratio - 1) * out + ratio * delta, alpha=weight)

    def stored(self, factors: Factors) -> tuple[int, dict[str, torch.Tensor]]:
        """Return A and B under PEFT's names for embeddings."""
        tensors = {"lora_embedding_A": factors.a, "lora_embedding_B": factors.b}
        if factors.magnitude is not None:
            tensors["lora_magnitude_vector"] = factors.magnitude
        return self.rank, tensors


class LoraEmbedding(LoraLayer, nn.Embedding):
    """An nn.Embedding with adapters."""


LoraEmbedding.lora_base = nn.Embedding
LoraEmbedding.lora_host = LoraEmbedding


class Embedding(LayerKind):
    """nn.Embedding and its subclasses, those that scale their rows included."""

    name = "Embedding"
    host = LoraEmbedding
    modules = (nn.Embedding,)

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse `max_norm`, which rewrites the base's rows at every look-up, and a bias of B."""
        if getattr(module, "max_norm", None) is not None:
            return "is an embedding with max_norm, which rewrites its rows at every look-up"
        if entry.bias is not None:
            return "is an embedding, for which a bias of B (lora_bias) is not defined"
        return None

    def shapes(self, module: nn.Module, rank: int) -> dict[str, Shape]:
        """Return A (rank, vocabulary), B (width, rank), magnitude (width,)."""
        table: Any = module
        rows, width = table.num_embeddings, table.embedding_dim
        return {"a": (rank, rows), "b": (width, rank), "magnitude": (width,)}

    def term(self, module: nn.Module, rank: int, scale: float, dropout: float) -> LoraTerm:
        """Return an EmbeddingTerm."""
        return EmbeddingTerm(rank, scale, dropout)
