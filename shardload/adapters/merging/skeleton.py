"""Skeleton: a checkpoint's modules on meta, made from its headers alone, for the match with an adapter.

A merge on disk needs no class and runs no code of the repo. It has to know whether a layer's weight is transposed: the
shapes tell, and for square weights other layers of the same name or the adapter's config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.adapters.module_index import ModuleIndex
from shardload.checkpoint.shard import DTYPES
from shardload.errors import UnsupportedError, Wording

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.adapters.adapter import AdapterContent, LoraEntry
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived

_CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}

Parts = dict[str, torch.Tensor]


class Conv1D(nn.Module):
    """A linear layer with a transposed weight, (in, out), as GPT-2 has it."""

    nf: int


def skeleton_of(checkpoint: Checkpoint, content: AdapterContent, config: Mapping[str, object]) -> nn.Module:
    """Return a tree of modules on meta with every stored tensor as a parameter under its stored name.

    Modules that the adapter has an entry for get the class that their shapes fit; `config` is the adapter's. Raises
    UnsupportedError for a square weight that may be transposed or not.
    """
    owners: dict[str, Parts] = {}
    for name, ref in checkpoint.tensors.items():
        path, _, attribute = name.rpartition(".")
        owners.setdefault(path, {})[attribute] = _on_meta(ref)
    root = nn.Module()
    modules = {"": root}
    for path, parts in owners.items():
        _fill(_child(root, modules, path), parts)
    index = ModuleIndex(root)
    paths = [entry.path for entry in content.loras] + [entry.path for entry in content.replaced]
    found = index.resolve([*paths, *(entry.path for entry in content.rows)]).found
    _type_embeddings(modules, owners, content, found)
    transposed = _transposed_names(owners)
    for entry in content.loras:
        place = found.get(entry.path)
        if place is not None and place in owners:
            typed = _typed(place, owners[place], entry, transposed, config)
            if typed is not None:
                _replace(modules, place, typed)
    return root


def _type_embeddings(
    modules: dict[str, nn.Module],
    owners: Mapping[str, Parts],
    content: AdapterContent,
    found: Mapping[str, str],
) -> None:
    """Make embeddings of modules with replaced rows, and of weights that are replaced though the config omits them.

    Only embedding tables are saved that way, and heads without a bias, for which the maths is the same.
    """
    paths = [entry.path for entry in content.rows]
    paths += [entry.path for entry in content.replaced if entry.attribute == "weight" and not entry.declared]
    for path in paths:
        place = found.get(path)
        parts = owners.get(place) if place is not None else None
        if (
            place is not None
            and parts is not None
            and parts.keys() == {"weight"}
            and parts["weight"].dim() == 2
        ):
            _replace(modules, place, _embedding(parts["weight"], parts))


def _on_meta(ref: Derived) -> torch.Tensor:
    # A dtype that torch lacks can't be merged; it is declined by its stored name later.
    return torch.empty(ref.shape, dtype=DTYPES.get(ref.dtype, torch.uint8), device="meta")


def _child(root: nn.Module, modules: dict[str, nn.Module], path: str) -> nn.Module:
    if path in modules:
        return modules[path]
    above, _, name = path.rpartition(".")
    made = modules[path] = nn.Module()
    _child(root, modules, above)._modules[name] = made
    return made


def _fill(module: nn.Module, parts: Parts) -> nn.Module:
    for name, tensor in parts.items():
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    return module


def _replace(modules: dict[str, nn.Module], path: str, module: nn.Module) -> None:
    old = modules[path]
    for name, child in old._modules.items():
        module._modules.setdefault(name, child)
    modules[path] = module
    above, _, name = path.rpartition(".")
    if path:
        modules[above]._modules[name] = module


def _typed(
    path: str, parts: Parts, entry: LoraEntry, transposed: set[str], config: Mapping[str, object]
) -> nn.Module | None:
    """Return a module of the stored layer's class, or None where a plain nn.Module will do."""
    if "in_proj_weight" in parts:
        return _attention(parts)
    weight = parts.get("weight")
    if weight is None or not parts.keys().isdisjoint(entry.parameters):
        return None
    if weight.dim() in _CONVOLUTIONS:
        return _convolution(weight, parts, entry)
    return _matrix(path, parts, entry, transposed, config) if weight.dim() == 2 else None


def _matrix(
    path: str, parts: Parts, entry: LoraEntry, transposed: set[str], config: Mapping[str, object]
) -> nn.Module:
    weight = parts["weight"]
    if "lora_embedding_" in entry.a.name:
        return _embedding(weight, parts)
    if _is_transposed(path, weight, entry, transposed, config):
        return _conv1d(weight, parts) if "bias" in parts else _embedding(weight, parts)
    return _linear(weight, parts)


def _is_transposed(
    path: str,
    weight: torch.Tensor,
    entry: LoraEntry,
    transposed: set[str],
    config: Mapping[str, object],
) -> bool:
    """Return whether the weight is (in, out); a table of embeddings, whose delta has the same form, counts too."""
    if len(entry.a.shape) != 2 or weight.shape[0] == weight.shape[1]:
        return _square_is_transposed(path, entry, transposed, config)
    into = entry.a.shape[0] if entry.columns else entry.a.shape[1]
    return bool(into == weight.shape[0] != weight.shape[1])


def _square_is_transposed(
    path: str, entry: LoraEntry, transposed: set[str], config: Mapping[str, object]
) -> bool:
    if "lora_embedding_" in entry.a.name:
        return True
    by_name = path.rpartition(".")[2] in transposed
    stated = config.get("fan_in_fan_out") is True
    if stated and not transposed:
        raise UnsupportedError(
            "the headers do not tell which way round this square weight lies: the adapter's config says "
            "fan_in_fan_out, and no other layer of the checkpoint is stored transposed",
            where=path,
            cure=Wording(
                "merge in memory: from_pretrained with {adapter} and {merge}, then save",
                adapter=...,
                merge=True,
            ),
        )
    return by_name or (stated and bool(transposed))


def _transposed_names(owners: Mapping[str, Parts]) -> set[str]:
    """Return the last names of layers with a transposed weight: their bias is as long as a row, not a column."""
    votes: dict[str, set[bool]] = {}
    for path, parts in owners.items():
        weight, bias = parts.get("weight"), parts.get("bias")
        if weight is None or bias is None or weight.dim() != 2 or bias.dim() != 1:
            continue
        rows, columns = weight.shape
        if rows != columns and bias.shape[0] in {rows, columns}:
            votes.setdefault(path.rpartition(".")[2], set()).add(bias.shape[0] == columns)
    return {name for name, kinds in votes.items() if kinds == {True}}


def _linear(weight: torch.Tensor, parts: Parts) -> nn.Module:
    # Without nn.Linear's constructor, which initialises: that takes time on meta too.
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.out_features, layer.in_features = weight.shape
    return _fill(layer, parts)


def _conv1d(weight: torch.Tensor, parts: Parts) -> nn.Module:
    layer = Conv1D()
    layer.nf = weight.shape[1]
    return _fill(layer, parts)


def _embedding(weight: torch.Tensor, parts: Parts) -> nn.Module:
    layer = nn.Embedding.__new__(nn.Embedding)
    nn.Module.__init__(layer)
    layer.num_embeddings, layer.embedding_dim = weight.shape
    layer.padding_idx = layer.max_norm = None
    return _fill(layer, parts)


def _convolution(weight: torch.Tensor, parts: Parts, entry: LoraEntry) -> nn.Module:
    out, inner, *kernel = weight.shape
    groups = 1
    # PEFT's A has a row of channels a kernel position, loralib's matrix a run of them.
    channels = entry.a.shape[1] if len(entry.a.shape) > 1 else 0
    if len(entry.a.shape) == 2:
        channels //= kernel[0]
    if inner and channels % inner == 0:
        groups = max(channels // inner, 1)
    made = _CONVOLUTIONS[weight.dim()]
    layer = made(inner * groups, out, tuple(kernel), groups=groups, bias="bias" in parts, device="meta")
    return _fill(layer, parts)


def _attention(parts: Parts) -> nn.Module:
    width = parts["in_proj_weight"].shape[1]
    layer = nn.MultiheadAttention(width, 1, bias="in_proj_bias" in parts, device="meta")
    return _fill(layer, parts)
