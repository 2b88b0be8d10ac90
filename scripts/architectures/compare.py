"""What two models that were loaded from the same files have in common, and what not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import nn


def models(ours: nn.Module, theirs: nn.Module) -> tuple[list[str], list[str]]:
    """Return the faults of `ours`, and the differences that are no faults."""
    if type(ours) is not type(theirs):
        return [f"class {type(ours).__name__}, not {type(theirs).__name__}"], []
    state, counters = counted(ours.state_dict(), theirs.state_dict())
    faults = tensors("state_dict", ours.state_dict(), state)
    mine, other = (_computed(model) for model in (ours, theirs))
    left = [name for name, buffer in other.items() if buffer.is_meta]
    faults += tensors("computed buffers", _without(mine, left), _without(other, left))
    faults += _different("ties", ties(ours), ties(theirs))
    faults += _different("config.dtype", ours.config.dtype, theirs.config.dtype)
    faults += _different("generation_config", _generation(ours), _generation(theirs))
    faults += [
        f"in training mode: {name or 'the model'}" for name, one in ours.named_modules() if one.training
    ][:1]
    faults += [f"on meta: {name}" for name in on_meta(ours)[:3]]
    notes = [f"transformers leaves on meta: {name}" for name in on_meta(theirs)[:3]]
    notes += _named("transformers makes floats of integer buffers", counters)
    mine, other = config_dtypes(ours.config), config_dtypes(theirs.config)
    inner = [f"{path} ({mine.get(path)}, not {one})" for path, one in other.items() if mine.get(path) != one]
    notes += _named("dtypes of inner configs", inner)
    return faults, notes + _gradients(ours, theirs)


def counted(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return `theirs` with integers where `ours` has the same numbers as integers, and the names of these.

    transformers casts whatever a class keeps in float32, the counters of its normalisations too.
    """
    names = [
        name
        for name, one in theirs.items()
        if one.is_floating_point()
        and name in ours
        and not ours[name].is_floating_point()
        and torch.equal(ours[name].to(one.dtype), one)
    ]
    return theirs | {name: theirs[name].to(ours[name].dtype) for name in names}, names


def tensors(what: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """Return a line for each kind of difference: names, dtypes, shapes and bytes."""
    found = _named(f"{what}: missing", [name for name in theirs if name not in ours])
    found += _named(f"{what}: more", [name for name in ours if name not in theirs])
    both = [(name, ours[name], theirs[name]) for name in theirs if name in ours]
    for kind in ("dtype", "shape"):
        other = [
            f"{name} ({getattr(mine, kind)}, not {getattr(one, kind)})"
            for name, mine, one in both
            if getattr(mine, kind) != getattr(one, kind)
        ]
        found += _named(f"{what}: other {kind}", other)
    alike = [
        (name, mine, one) for name, mine, one in both if mine.dtype == one.dtype and mine.shape == one.shape
    ]
    return found + _named(
        f"{what}: other values", [name for name, mine, one in alike if not same_bytes(mine, one)]
    )


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of one dtype and shape hold the same bytes."""
    if one.is_meta or other.is_meta:
        return one.is_meta and other.is_meta
    flat = (tensor.detach().contiguous().reshape(-1) for tensor in (one, other))
    return torch.equal(*(tensor.view(torch.uint8) if tensor.numel() else tensor for tensor in flat))


def lost_values(saved: nn.Module, loaded: nn.Module) -> list[str]:
    """Return the names in `saved` whose values `loaded` has not, in the dtype that it was loaded in."""
    before, after = saved.state_dict(), loaded.state_dict()
    lost = [name for name in before.keys() | after.keys() if name not in before or name not in after]
    for name in before.keys() & after.keys():
        got = after[name]
        if got.is_meta or got.shape != before[name].shape or not same_bytes(before[name].to(got.dtype), got):
            lost.append(name)
    return sorted(lost)


def ties(model: nn.Module) -> list[list[str]]:
    """Return the groups of names that are one tensor."""
    groups: dict[int, list[str]] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        groups.setdefault(id(tensor), []).append(name)
    return sorted(sorted(names) for names in groups.values() if len(names) > 1)


def config_dtypes(config: Any, path: str = "config") -> dict[str, str]:
    """Return the dtypes of the configs inside a config, by their paths."""
    found = {}
    for name in getattr(config, "sub_configs", ()):
        inner = getattr(config, name, None)
        if hasattr(inner, "to_dict"):
            found[f"{path}.{name}"] = str(inner.dtype).removeprefix("torch.")
            found |= config_dtypes(inner, f"{path}.{name}")
    return found


def on_meta(model: nn.Module) -> list[str]:
    """Return the names of parameters, buffers and plain tensor attributes that have no memory."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for table in (module._parameters, module._buffers, vars(module))
        for name, value in table.items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]


def files(ours: Path, theirs: Path) -> list[str]:
    """Return how the tensors in the files of two folders differ."""
    from safetensors.torch import load_file

    one, other = (
        {
            name: tensor
            for path in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }
        for folder in (ours, theirs)
    )
    return tensors("files", one, counted(one, other)[0])


def _computed(model: nn.Module) -> dict[str, torch.Tensor]:
    stored = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name not in stored}


def _without(named: dict[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in named.items() if name not in set(names)}


def _generation(model: nn.Module) -> Any:
    settings = getattr(model, "generation_config", None)
    return None if settings is None else settings.to_dict()


def _gradients(ours: nn.Module, theirs: nn.Module) -> list[str]:
    wanted = {name: one.requires_grad for name, one in theirs.named_parameters()}
    other = [
        name
        for name, one in ours.named_parameters()
        if wanted.get(name, one.requires_grad) != one.requires_grad
    ]
    return _named("other requires_grad", other)


def _named(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {len(names)}, such as {', '.join(names[:3])}"] if names else []


def _different(what: str, ours: Any, theirs: Any) -> list[str]:
    if ours == theirs:
        return []
    return [f"{what}: {', '.join(_pairs(ours, theirs))}"[:300]]


def _pairs(ours: Any, theirs: Any) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            if ours.get(key) != theirs.get(key):
                yield f"{key} is {ours.get(key)!r}, not {theirs.get(key)!r}"
    elif isinstance(ours, list) and isinstance(theirs, list):
        yield f"{[one for one in ours if one not in theirs]}, not {[one for one in theirs if one not in ours]}"
    else:
        yield f"{ours!r}, not {theirs!r}"
