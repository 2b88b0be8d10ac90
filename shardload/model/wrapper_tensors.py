"""Tensors of other classes than torch's own (DTensor, quantised weights), and modules that shard or mirror a model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

PLAIN = frozenset(
    {torch.Tensor, nn.Parameter, nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer}
)
"""The classes of tensors that hold their values themselves, in memory of their own."""

_SHARDS = "torch.distributed."
_MIRRORS = ("DistributedDataParallel", "FullyShardedDataParallel")


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values lie in other tensors, and operations on it are its class's own: DTensor, torchao's."""
    kind = type(tensor)
    return kind not in PLAIN and (hasattr(tensor, "__tensor_flatten__") or _dispatches(kind))


def _dispatches(kind: type) -> bool:
    own = getattr(kind, "__torch_dispatch__", None)
    return own is not None and own is not torch._C._disabled_torch_dispatch_impl


def named(tensors: Iterable[tuple[str, torch.Tensor]], shown: int = 4) -> str:
    """Return "0.weight is a DTensor, …" for tensors of other classes than torch's own."""
    found = [f"{name} is a {type(tensor).__name__}" for name, tensor in tensors if type(tensor) not in PLAIN]
    more = f" and {len(found) - shown} more" if len(found) > shown else ""
    return ", ".join(found[:shown]) + more


def refuse_wrapped(model: nn.Module, doing: str) -> None:
    """Raise UnsupportedError for a model with parameters or buffers of other classes, or that DDP or FSDP wraps."""
    refuse_sharded(model, doing)
    found = named((*model.named_parameters(), *model.named_buffers()))
    if found:
        raise UnsupportedError(
            f"{doing} would put plain tensors in the place of tensors of other classes",
            where=found,
            cure="fill the model first, then shard or quantise it",
        )


def refuse_sharded(model: nn.Module, doing: str) -> None:
    """Raise UnsupportedError for a model that is sharded or mirrored over processes: they would not share new parts."""
    found = named(
        (name, tensor)
        for name, tensor in model.named_parameters()
        if type(tensor) not in PLAIN and type(tensor).__module__.startswith(_SHARDS)
    )
    kinds = {type(module) for module in model.modules()}
    around = [
        name for name in _MIRRORS if any(kind.__name__ == name for own in kinds for kind in own.__mro__)
    ]
    if found or around:
        raise UnsupportedError(
            f"{doing} after the model was sharded or mirrored would make parameters that the processes don't share",
            where=found or f"the model is inside {around[0]}",
            cure="do it first, then call fully_shard, parallelize_module or DistributedDataParallel",
        )


def class_of(module: object) -> type:
    """Return the class that a module was made of: torch puts one of its own before it to shard or parametrize it."""
    made = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module) and not _put_before(kind))
    return next(made, type(module))


def _put_before(kind: type) -> bool:
    home = kind.__module__
    return home.startswith("torch.") and getattr(sys.modules.get(home), kind.__name__, None) is not kind
