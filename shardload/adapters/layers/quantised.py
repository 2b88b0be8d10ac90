"""Quantised linear layers that are no nn.Linear: their own forward, plus the adapter's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.adapters.layers.layer import LoraLayer
from shardload.adapters.layers.linear import Linear

if TYPE_CHECKING:
    from shardload.adapters.adapter import LoraEntry
    from shardload.adapters.layers.term import LoraTerm

_BITS = 8


class LoraQuantised(LoraLayer):
    """A quantised linear layer with adapters."""


class Quantised(Linear):
    """A module that holds integers, with `in_features` and `out_features` as nn.Linear has them.

    GPTQ's, AWQ's and HQQ's layers have them; ChatGLM2's QuantizedLinear has `weight_bit_width` instead.
    """

    name = "quantised Linear"
    host = LoraQuantised

    def fits(self, module: nn.Module, entry: LoraEntry | None = None) -> bool:
        """Return whether the module has a matrix of integers, and the two widths."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            return False
        tensors = (*module._parameters.values(), *module._buffers.values())
        integers = any(
            tensor is not None and tensor.dim() == 2 and not tensor.is_floating_point() for tensor in tensors
        )
        return integers and all(width > 0 for width in self.features(module))

    def unfit(self, module: nn.Module, entry: LoraEntry) -> str | None:
        """Refuse DoRA, which needs the norms of the weight."""
        if entry.magnitude is not None:
            return f"is a quantised {type(module).__name__}: DoRA needs the norms of its weight"
        return None

    def unmergeable(self, module: nn.Module, term: LoraTerm) -> str | None:
        """Refuse always: integers have no room for a delta."""
        return f"is a quantised {type(module).__name__}: merge into the full-precision base instead"

    def features(self, module: nn.Module) -> tuple[int, int]:
        """Return (out, in), zeros where the module does not have them."""
        out, into = getattr(module, "out_features", None), getattr(module, "in_features", None)
        if isinstance(out, int) and isinstance(into, int):
            return out, into
        bits: Any = getattr(module, "weight_bit_width", None)
        weight = getattr(module, "weight", None)
        if (
            isinstance(bits, int)
            and 0 < bits <= _BITS
            and isinstance(weight, torch.Tensor)
            and weight.dim() == 2
        ):
            return weight.shape[0], weight.shape[1] * _BITS // bits
        return 0, 0
