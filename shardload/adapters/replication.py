"""layer_replication: the base's layers repeated in runs; copies share their weights, as in PEFT."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from shardload.adapters.attached import ReplacedAttribute
from shardload.adapters.layers import LoraLayer
from shardload.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_STACKS = ("layers", "h", "encoder.layer", "encoder.layers", "decoder.layers")


@dataclass
class Replication:
    """A stack of layers, and the longer one that replaces it while an adapter is active.

    The stack is the attribute `attribute` of `owner`. Copies have the parameter objects of the layers that they repeat,
    and their own `layer_idx` where the layers have one.
    """

    owner: nn.Module
    attribute: str
    original: nn.Module
    own: nn.ModuleList
    config: Any = None

    def replaced(self) -> Iterator[ReplacedAttribute]:
        """Yield the attributes that the longer stack replaces."""
        yield ReplacedAttribute(self.owner, self.attribute, self.original, self.own)
        if isinstance(getattr(self.config, "num_hidden_layers", None), int):
            count = self.config.num_hidden_layers
            yield ReplacedAttribute(self.config, "num_hidden_layers", count, len(self.own))


def replicate(model: nn.Module, runs: tuple[tuple[int, int], ...]) -> Replication:
    """Return the stack of layers that `runs` of (first, end) describe; the model is not changed.

    Raises UnsupportedError where the model has no stack of layers, or a run goes beyond it; UsageError when adapters
    are attached to it already.
    """
    owner, attribute, stack = _stack_of(model)
    if any(isinstance(module, LoraLayer) for module in stack.modules()):
        raise UsageError(
            "an adapter with layer_replication repeats the layers of the base, which have adapters already",
            where=attribute,
            cure="attach it to a base without adapters",
        )
    last = max(end for _, end in runs)
    if last > len(stack):
        raise UnsupportedError(
            f"layer_replication repeats layers up to {last - 1}, and the model has {len(stack)}",
            where=attribute,
            cure="load the adapter onto the base that it was trained on",
        )
    layers: list[nn.Module] = []
    for first, end in runs:
        for number in range(first, end):
            layer = _shared_copy(stack[number])
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    setattr(module, "layer_idx", len(layers))  # noqa: B010 - mypy takes it for a tensor
            layers.append(layer)
    return Replication(owner, attribute, stack, nn.ModuleList(layers), getattr(model, "config", None))


def _stack_of(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    inner = model
    while isinstance(getattr(inner, "model", None), nn.Module):
        inner = inner.model  # type: ignore[assignment]
    for start in (inner, getattr(inner, "transformer", None), getattr(inner, "bert", None)):
        for path in _STACKS:
            owner_path, _, attribute = path.rpartition(".")
            owner = start
            for segment in owner_path.split(".") if owner_path else ():
                owner = getattr(owner, segment, None)
            stack = getattr(owner, attribute, None)
            if isinstance(owner, nn.Module) and isinstance(stack, nn.ModuleList):
                return owner, attribute, stack
    raise UnsupportedError(
        "layer_replication repeats the layers of the base, and this model has no stack of layers",
        where=type(model).__name__,
        cure=f"its layers have to be an nn.ModuleList called one of {', '.join(_STACKS)}",
    )


def _shared_copy(layer: nn.Module) -> nn.Module:
    """Copy a layer's modules, with the same parameters and buffers."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    return copy.deepcopy(layer, shared)
