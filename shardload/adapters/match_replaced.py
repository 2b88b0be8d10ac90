"""Pairs stored tensors with the model's tensors that they replace: trained biases, parts of `modules_to_save`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from shardload.adapters.adapter_match import ReplacedMatch
from shardload.adapters.adapter_report import shown
from shardload.adapters.module_index import output_head, tensor_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.adapters.adapter import AdapterContent, ReplacedEntry
    from shardload.adapters.adapter_match import AdapterMatch
    from shardload.adapters.module_index import ModuleIndex


def match_replaced(
    model: nn.Module,
    content: AdapterContent,
    index: ModuleIndex,
    places: Mapping[str, str],
    result: AdapterMatch,
) -> None:
    """Add to `result` the model's tensor for each stored tensor that replaces one, or a fault.

    `places` maps the file's module paths to the model's.
    """
    taken: set[tuple[int, str]] = set()
    for entry in content.replaced:
        place = places.get(entry.path)
        if place is None:
            result.add_unexpected(entry.ref, entry.path, index)
            continue
        found = _match(entry, place, index, result, head=output_head(model))
        if found is None:
            continue
        owned = (id(found.module), entry.attribute)
        if owned in taken:
            text = f"{shown(place)} is a second name of a module that is in the file too"
            result.add_fault("duplicate", entry.ref, text)
            continue
        taken.add(owned)
        if not entry.declared:
            result.warnings.append(f"{shown(entry.ref.name)}: a saved embedding replaces the base's")
        if found.resized:
            rows = len(found.module._parameters["weight"])  # type: ignore[arg-type]
            text = f"the vocabulary is resized from {rows} to {entry.ref.shape[0]}"
            result.warnings.append(f"{shown(entry.ref.name)}: {text}")
        result.replaced.append(found)
    _find_ties(index, result.replaced, taken)


def _match(
    entry: ReplacedEntry, place: str, index: ModuleIndex, result: AdapterMatch, *, head: object
) -> ReplacedMatch | None:
    """Return the module's tensor that a stored one replaces; None, with a fault, where it can't."""
    module = index.modules[place]
    current = tensor_of(module, entry.attribute)
    if current is None:
        text = f"{shown(place) or 'the model'} ({type(module).__name__}) has no tensor {shown(entry.attribute)!r}"
        near = place or index.nearest(entry.name) or ""
        result.add_fault("unexpected", entry.ref, text, near=near)
        return None
    shape = tuple(current.shape)
    embedding = isinstance(module, nn.Embedding) or module is head
    if not entry.declared and not embedding:
        text = "the config does not account for this tensor (modules_to_save does not name its module)"
        result.add_fault("unexpected", entry.ref, text, shape, near=place)
        return None
    resized = entry.ref.shape != shape
    if resized and not (embedding and _resizes(entry, module, shape, index)):
        result.add_fault("shape", entry.ref, "the shape does not fit", shape, near=place)
        return None
    if entry.ref.is_floating != current.dtype.is_floating_point:
        text = f"a stored {entry.ref.dtype} can't replace {current.dtype}"
        result.add_fault("unsupported", entry.ref, text)
        return None
    return ReplacedMatch(entry, place, module, resized=resized)


def _resizes(entry: ReplacedEntry, module: nn.Module, shape: tuple[int, ...], index: ModuleIndex) -> bool:
    """Return whether an embedding's stored weight differs from the model's in its number of rows alone."""
    size = "num_embeddings" if isinstance(module, nn.Embedding) else "out_features"
    weight = module._parameters.get("weight")
    biased = [
        user
        for user in index.modules.values()
        if weight is not None
        and user._parameters.get("weight") is weight
        and user._parameters.get("bias") is not None
    ]
    return (
        entry.attribute == "weight"
        and len(entry.ref.shape) == len(shape) == 2
        and entry.ref.shape[1:] == shape[1:]
        and getattr(module, size, None) == shape[0]
        and not biased
    )


def _find_ties(index: ModuleIndex, replaced: list[ReplacedMatch], taken: set[tuple[int, str]]) -> None:
    """Note the ties of every parameter whose replacement goes to its ties too."""
    tied = {
        id(tensor_of(found.module, found.entry.attribute)): found for found in replaced if found.entry.tied
    }
    if not tied:
        return
    seen = set(taken)
    for module in index.modules.values():
        for name, parameter in module._parameters.items():
            match = tied.get(id(parameter)) if parameter is not None else None
            if match is not None and (id(module), name) not in seen:
                seen.add((id(module), name))
                match.ties.append((module, name))
