"""The parts of the base that active adapters replace: biases, `modules_to_save`, a vocabulary, a stack of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from shardload.adapters.adapter import listing
from shardload.adapters.attached import ReplacedAttribute, ReplacedTensor
from shardload.adapters.layers import Factor
from shardload.adapters.module_index import tensor_of
from shardload.adapters.values import as_parameter
from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from shardload.adapters.attached import Adapters, Attached
    from shardload.adapters.values import AdapterValues


def note_replaced(model: nn.Module, attached: Attached, values: AdapterValues) -> None:
    """Note in an adapter's record which tensors and attributes of the base it replaces; nothing is replaced yet."""
    for match, tensor in values.replaced:
        original = tensor_of(match.module, match.entry.attribute)
        if original is None:
            continue
        own = as_parameter(tensor) if isinstance(original, nn.Parameter) else tensor
        places = [(match.module, match.entry.attribute), *match.ties]
        attached.replaced += [
            ReplacedTensor(module, attribute, original, own, whole=not match.entry.tied)
            for module, attribute in places
        ]
        if match.resized:
            modules = [module for module, _ in places]
            attached.replaced_attributes += _sizes(model, modules, len(original), len(own))
    if values.replication is not None:
        attached.replaced_attributes += values.replication.replaced()


def _sizes(model: nn.Module, modules: list[nn.Module], rows: int, own: int) -> Iterator[ReplacedAttribute]:
    """Yield the sizes that follow a resized vocabulary: those of the modules, and the config's vocab_size."""
    for module in modules:
        size = "num_embeddings" if isinstance(module, nn.Embedding) else "out_features"
        yield ReplacedAttribute(module, size, rows, own)
    config = getattr(model, "config", None)
    if getattr(config, "vocab_size", None) == rows and modules and isinstance(modules[0], nn.Embedding):
        yield ReplacedAttribute(config, "vocab_size", rows, own)


def note_biases(model: nn.Module, attached: Attached, bias: str) -> None:
    """Give an adapter copies of the base's biases ("lora_only": of the adapter's layers, or "all") to replace them.

    No adapter may be replacing tensors of the base at this moment.
    """
    known = {(id(one.module), one.attribute) for one in attached.replaced}
    own: dict[int, nn.Parameter] = {}
    for module in model.modules() if bias == "all" else attached.layers:
        original = module._parameters.get("bias")
        if original is not None and (id(module), "bias") not in known and not isinstance(module, Factor):
            copy = own.setdefault(id(original), as_parameter(original.detach().clone()))
            attached.replaced.append(ReplacedTensor(module, "bias", original, copy))
    attached.config = {**(attached.config or {}), "bias": bias}


def check_apart(adapters: Adapters, weights: Mapping[str, float]) -> None:
    """Raise UsageError for adapters that replace the same part of the base, or replace a tensor at a weight but 1."""
    chosen = [adapters.attached[name] for name in weights]
    tensors = [(id(one.module), one.attribute) for each in chosen for one in each.replaced]
    if len(set(tensors)) < len(tensors):
        raise UsageError(
            "two of these adapters replace the same tensor of the base (a bias, or a part of modules_to_save)",
            where=listing(list(weights)),
            cure="make one of them active at a time",
        )
    changed = [one for each in chosen for one in each.replaced_attributes]
    repeats = any(isinstance(one.own, nn.Module) for one in changed)
    if len({(id(one.target), one.attribute) for one in changed}) < len(changed) or (
        repeats and len(weights) > 1
    ):
        raise UsageError(
            "these adapters change the shape of the base (its vocabulary, or its layers), each in its own way",
            where=listing(list(weights)),
            cure="make one of them active at a time",
        )
    weighted = [each.name for each in chosen if each.replaced and weights[each.name] != 1]
    if weighted:
        raise UsageError(
            "an adapter that replaces tensors of the base (a bias, or modules_to_save) has no weight but 1",
            where=listing(weighted),
            cure="give it the weight 1",
        )


def replace_base(adapters: Adapters, names: tuple[str, ...]) -> None:
    """Replace the base's tensors and attributes by those of these adapters, and restore what all others replaced."""
    names = tuple(name for name in names if name in adapters.attached)
    if names == adapters.replacing:
        return
    for name in adapters.replacing:
        for tensor in adapters.attached[name].replaced:
            tensor.own = _replace(tensor, tensor.original)
        for attribute in adapters.attached[name].replaced_attributes:
            setattr(attribute.target, attribute.attribute, attribute.original)
    adapters.replacing = names
    for name in names:
        for tensor in adapters.attached[name].replaced:
            tensor.original = _replace(tensor, tensor.own)
        for attribute in adapters.attached[name].replaced_attributes:
            setattr(attribute.target, attribute.attribute, attribute.own)


def _replace(replaced: ReplacedTensor, tensor: torch.Tensor) -> torch.Tensor:
    """Put a tensor into its module and return the one that was there.

    The tensor follows a model that was moved to another device or dtype since.
    """
    module, name = replaced.module, replaced.attribute
    current = tensor_of(module, name)
    if current is None:
        raise UsageError(f"the model has lost its tensor {name!r} since the adapter was attached")
    if tensor.device != current.device or tensor.dtype != current.dtype:
        moved = tensor.detach().to(device=current.device, dtype=current.dtype)
        if isinstance(tensor, nn.Parameter):
            # nn.Module.to does the same: the object stays, and so does every tie.
            tensor.data = moved
        else:
            tensor = moved
    table = module._parameters if name in module._parameters else module._buffers
    table[name] = tensor  # type: ignore[assignment]
    return current
