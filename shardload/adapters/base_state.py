"""The state dict of a model's base: without the tensors that adapters added, with those that they replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload._system.warn import warn_caller
from shardload.adapters.attach import adapters_of
from shardload.adapters.layers import LORA_PARTS, LoraLayer
from shardload.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


def without_adapters(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's state dict without what adapters added and replaced, and warn of the adapters by name.

    While they are merged their change stays in, and there is nothing to warn of.

    Raises UsageError for a part of a model whose adapters were attached to the whole: what they replace is known
    there.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    records = [found for module in modules.values() if (found := adapters_of(module)) is not None]
    layers = {path: module for path, module in modules.items() if isinstance(module, LoraLayer)}
    if not layers and not records:
        return state
    known = {id(record.switch) for record in records}
    for path, layer in layers.items():
        if id(layer.lora_switch) not in known:
            raise UsageError(
                "adapters were attached to a larger model that this one is a part of",
                where=path,
                cure="save the model that they were attached to, or detach them first",
            )
    added = tuple(f"{path}.{part}." if path else f"{part}." for path in layers for part in LORA_PARTS)
    base = {key: value for key, value in state.items() if not key.startswith(added)}
    paths = {id(module): path for path, module in reversed(modules.items())}
    if records and all(record.merged is not None for record in records):
        return base  # the adapters are in the weights
    for record in records:
        for name in record.replacing if record.merged is None else ():
            for replaced in record.attached[name].replaced:
                path = paths[id(replaced.module)]
                key = f"{path}.{replaced.attribute}" if path else replaced.attribute
                if key in base:
                    # As `detach` puts it back: in the dtype that the model has now.
                    base[key] = replaced.original.to(dtype=base[key].dtype)
    names = ", ".join(name for record in records if record.merged is None for name in record.attached)
    warn_caller(f"adapters are not saved, only their base: {names}")
    return base
