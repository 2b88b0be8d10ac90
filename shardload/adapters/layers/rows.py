"""Rows of an embedding that an adapter replaces: new tokens, trained alone (trainable_token_indices)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from shardload.adapters.layers.embedding import LoraEmbedding
from shardload.adapters.layers.layer import LayerKind, LoraLayer, Reading
from shardload.adapters.layers.linear import LoraLinear
from shardload.adapters.layers.term import LoraTerm

if TYPE_CHECKING:
    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import AdaptedLayer, Factors, Shape


@dataclass(frozen=True)
class RowsTerm(LoraTerm):
    """`a` holds the rows, (tokens, width); there is no B. `tokens` are the rows of the base weight that they replace.

    On a Linear, a head that is tied to the embedding, the same rows give the logits of these tokens.
    """

    tokens: tuple[int, ...] = ()

    def add(
        self, layer: AdaptedLayer, name: str, weight: float, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Return `out` computed with the adapter's rows, interpolated with the base's at `weight`."""
        rows: Any = layer.lora_A[name].weight
        if isinstance(layer, nn.Embedding):
            known, order = _sorted_tokens(self.tokens, x.device)
            place = torch.searchsorted(known, x).clamp_(max=len(known) - 1)
            new = functional.embedding(order[place], rows)
            factor = getattr(layer, "embed_scale", None)
            if factor is not None:
                new = new * (factor.to(new.dtype) if isinstance(factor, torch.Tensor) else factor)
            return torch.where(
                (known[place] == x).unsqueeze(-1), torch.lerp(out.to(new.dtype), new, weight), out
            )
        base: Any = layer
        index = torch.tensor(self.tokens, device=out.device)
        new = functional.linear(x.to(rows.dtype), rows)
        if base.bias is not None:
            new = new + base.bias[index]
        old = out.index_select(-1, index)
        return out.index_copy(-1, index, torch.lerp(old.to(new.dtype), new, weight).to(out.dtype))

    def stored(self, factors: Factors) -> tuple[int, dict[str, torch.Tensor]]:
        """Return the rows under PEFT's name; their tokens are in the config."""
        return 0, {"token_adapter.trainable_tokens_delta": factors.a}

    def changed(
        self,
        base: torch.Tensor,
        factors: Factors,
        weight: float = 1.0,
        rows: slice | None = None,
        shape: Shape | None = None,
        norm: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the base weight, or some rows of it, with the adapter's rows written into it."""
        del norm
        first, last, _ = (rows or slice(None)).indices((shape or tuple(base.shape))[0])
        inside = [place for place, token in enumerate(self.tokens) if first <= token < last]
        index = torch.tensor(
            [self.tokens[place] - first for place in inside], dtype=torch.long, device=base.device
        )
        new = factors.a[torch.tensor(inside, dtype=torch.long, device=factors.a.device)].to(base.device)
        if weight != 1.0:
            new = torch.lerp(base[index].to(new.dtype), new, weight)
        return base.index_copy(0, index, new.to(base.dtype))


@lru_cache(maxsize=64)
def _sorted_tokens(tokens: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    known, order = torch.tensor(tokens, device=device).sort()
    return known, order


class Rows(LayerKind):
    """An embedding with replaced rows, or a head that is tied to one."""

    name = "rows of an embedding"
    modules = (nn.Embedding, nn.Linear)

    def host_of(self, module: nn.Module) -> type[LoraLayer]:
        """Return LoraEmbedding, or LoraLinear for a head."""
        return LoraEmbedding if isinstance(module, nn.Embedding) else LoraLinear

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse tokens beyond the module's rows."""
        table: Any = module
        rows, largest = len(table.weight), max(self._tokens(entry))
        if largest >= rows:
            return f"has {rows} rows, and the adapter replaces that of token {largest}: resize the embedding first"
        return None

    def read(self, module: nn.Module, entry: LoraEntry) -> Reading:
        """Read the rows, (tokens, width)."""
        table: Any = module
        tokens = self._tokens(entry)
        return Reading(
            RowsTerm(0, 1.0, tokens=tokens),
            {"a": (len(tokens), table.weight.shape[1])},
            note=f"replaces {len(tokens)} rows",
        )

    def _tokens(self, entry: Any) -> tuple[int, ...]:
        tokens: tuple[int, ...] = entry.tokens
        return tokens
