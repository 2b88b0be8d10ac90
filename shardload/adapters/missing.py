"""Tensors that the config says the adapter file holds, and that it lacks. No weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.adapter_report import AdapterFault
from shardload.adapters.module_index import ModuleIndex

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from shardload.adapters.adapter import AdapterContent
    from shardload.adapters.adapter_match import AdapterMatch

Wanted = tuple[str, str, str]
"""Module path, attribute, and why the file should hold it."""


def check_missing(
    index: ModuleIndex, content: AdapterContent, match: AdapterMatch, places: Mapping[str, str]
) -> None:
    """Add a fault to `match` for every bias and every part of modules_to_save that is missing.

    `places` maps the file's module paths to the model's.
    """
    stored = {(places.get(entry.path), entry.attribute) for entry in content.replaced}
    wanted = _biases(index, content, match, stored)
    for path, module in index.modules.items():
        if any(path.endswith(name) for name in content.whole_modules):
            wanted += whole_tensors(path, module)
    for path, attribute, why in dict.fromkeys(wanted):
        if (path, attribute) not in stored:
            key = f"{path}.{attribute}" if path else attribute
            match.faults.append(AdapterFault("missing", key, f"the tensor is missing: {why}", path))


def _biases(
    index: ModuleIndex, content: AdapterContent, match: AdapterMatch, stored: set[tuple[str | None, str]]
) -> list[Wanted]:
    """Return the biases that the file should hold by the config's `bias`."""
    if content.bias == "none":
        return []
    paths = list(index.modules) if content.bias == "all" else [layer.path for layer in match.layers]
    biased = [path for path in paths if index.modules[path]._parameters.get("bias") is not None]
    if content.bias == "lora_only" and biased and not any((path, "bias") in stored for path in biased):
        match.warnings.append(
            f"the config says bias = lora_only, and the file holds none of the {len(biased)} biases: PEFT 0.7 to "
            "0.20 did not save them, so trained biases may be lost"
        )
        return []
    return [(path, "bias", f"the config says bias = {content.bias}") for path in biased]


def whole_tensors(path: str, module: nn.Module) -> list[Wanted]:
    """Return every parameter and stored buffer below a module that modules_to_save names."""
    found = []
    for inner, child in ModuleIndex(module).modules.items():
        owner = f"{path}.{inner}" if inner and path else inner or path
        names = [name for name, tensor in child._parameters.items() if tensor is not None]
        names += [
            name
            for name, tensor in child._buffers.items()
            if tensor is not None and name not in child._non_persistent_buffers_set
        ]
        found += [(owner, name, "it belongs to modules_to_save") for name in names]
    return found
