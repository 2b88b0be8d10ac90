"""Layers that read their weights without calling a layer: their weights are replaced during the forward."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from shardload.adapters.layers.layer import LoraLayer


def changed_weights(layer: LoraLayer) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Yield the module, the name and the changed value of every base tensor that the active adapters change in a layer.

    The value is computed in the wider dtype, returned in the base tensor's, and carries gradients to the factors.
    Raises UsageError inside adapter_batch, unless every row has the same adapter: one weight serves all rows.
    """
    rows = layer.lora_switch.choice.rows
    if rows is not None and not rows.alike:
        raise UsageError(
            f"a {layer.lora_base.__name__} reads its weights itself, and can't have another adapter for every row",
            where="adapter_batch",
            cure="run the rows of each adapter as a batch of their own",
        )
    values: dict[tuple[int, str], tuple[nn.Module, str, torch.Tensor]] = {}
    for name, weight in layer.lora_switch.active.items():
        for module, term, factors in layer.lora_changes(name):
            key = (id(module), term.attribute)
            base = module._parameters[term.attribute]
            if base is None:
                continue
            now = values[key][2] if key in values else base
            dtype = torch.promote_types(now.dtype, factors.a.dtype)
            values[key] = (module, term.attribute, term.changed(now.to(dtype), factors.to(dtype), weight))
    for module, attribute, value in values.values():
        base = module._parameters[attribute]
        yield module, attribute, value if base is None else value.to(base.dtype)


def changed_bias(layer: LoraLayer) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Yield the layer's bias plus every active adapter's bias of B, where the layer has a bias."""
    bias = layer._parameters.get("bias")
    value = bias
    for name, weight in layer.lora_switch.active.items():
        for _, term, factors in layer.lora_changes(name):
            if value is not None and factors.bias is not None and term.adds_bias:
                value = torch.add(value, factors.bias, alpha=term.scale * weight)  # type: ignore[assignment]
    if bias is not None and value is not None and value is not bias:
        yield layer, "bias", value.to(bias.dtype)


@contextmanager
def weights_replaced(weights: Iterable[tuple[nn.Module, str, torch.Tensor]]) -> Iterator[None]:
    """Replace parameters by tensors until the block ends. Not for several threads at once."""
    kept = []
    try:
        for module, attribute, value in list(weights):
            kept.append((module, attribute, module._parameters[attribute]))
            module._parameters[attribute] = value  # type: ignore[assignment]
        yield
    finally:
        for module, attribute, parameter in kept:
            module._parameters[attribute] = parameter
