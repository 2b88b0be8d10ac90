"""Finds and updates the second places where a module keeps its parameters: attributes, lists and dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

_TENSORS = frozenset({nn.Parameter, torch.Tensor})
_CONTAINERS = frozenset({list, tuple, dict})
_HOLDERS = _TENSORS | _CONTAINERS
_TABLES = frozenset({"_parameters", "_buffers", "_modules"})


class References:
    """Points a model's other references to old tensors at the new ones: a load assigns new tensors to parameters.

    Make the object before the load, and call `renew` after it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # The old tensors are kept alive, so that no new object gets their ids. A buffer that is also a parameter is
        # recorded as the parameter.
        self._places: dict[int, tuple[torch.Tensor, nn.Module, str]] = {}
        modules = _modules(model)
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._places[id(parameter)] = (parameter, module, name)
        for module in modules:
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    self._places.setdefault(id(buffer), (buffer, module, name))

    def renew(self, undo: list[Callable[[], None]]) -> None:
        """Replace old tensors in plain attributes, non-persistent buffers and containers among the attributes.

        `undo` takes a function for each change, which reverts the change.
        """
        renewed = _Renewed(self._replaced(), undo)
        if not renewed.by_id:
            return
        for module in _modules(self._model):
            for name, buffer in module._buffers.items():
                if id(buffer) in renewed.by_id:
                    renewed.put(module._buffers, name, renewed.by_id[id(buffer)])
            # Nearly all attributes are numbers and empty hook tables.
            held = [
                (name, value)
                for name, value in module.__dict__.items()
                if type(value) in _HOLDERS and name not in _TABLES
            ]
            for name, value in held:
                new = renewed.of(value)
                if new is not value:
                    renewed.put(module.__dict__, name, new)
            if module._forward_pre_hooks:
                _recompute(module, undo)

    def _replaced(self) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        for old, module, name in self._places.values():
            now: torch.Tensor | None = module._parameters.get(name)
            if now is None:
                now = module._buffers.get(name)
            if now is not None and now is not old:
                found[id(old)] = now
                if isinstance(now, nn.Parameter):
                    # A class may set attributes on a parameter (no weight decay, say): the new parameter gets them.
                    now.__dict__.update(old.__dict__)
        return found


def _modules(model: nn.Module) -> list[nn.Module]:
    """Return every module once, by a loop: `model.modules()` yields each module through every level above it."""
    found = {id(model): model}
    pending = [model]
    while pending:
        for child in pending.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                pending.append(child)
    return list(found.values())


class _Renewed:
    """Replaces old tensors by new ones, found by the id of the old one, and records each change in `undo`."""

    def __init__(self, by_id: dict[int, torch.Tensor], undo: list[Callable[[], None]]) -> None:
        self.by_id = by_id
        self._undo = undo
        self._seen: set[int] = set()

    def put(self, table: Any, place: Any, value: Any) -> None:
        """Set an entry of a dict or a list, and record how to revert that."""
        old = table[place]
        self._undo.append(lambda: table.__setitem__(place, old))
        table[place] = value

    def of(self, value: Any) -> Any:
        """Return the new value for an old one; lists and dicts are changed in place, and only where needed."""
        kind = type(value)
        if kind in _TENSORS:
            return self.by_id.get(id(value), value)
        if kind not in _CONTAINERS or id(value) in self._seen:
            return value
        if kind is tuple:
            items = tuple(self.of(item) for item in value)
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        self._seen.add(id(value))  # a list may hold itself
        for place, item in list(value.items() if kind is dict else enumerate(value)):
            new = self.of(item)
            if new is not item:
                self.put(value, place, new)
        return value


def recomputes(hook: Any) -> bool:
    """Whether a hook before the forward is torch's own, which computes a tensor of its module from parameters."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _recompute(module: nn.Module, undo: list[Callable[[], None]]) -> None:
    """Recompute the tensors that torch's weight_norm, spectral_norm and pruning compute before each forward."""
    before = {name: value for name, value in module.__dict__.items() if type(value) in _TENSORS}
    undo.append(lambda: module.__dict__.update(before))
    training = module.training
    # In training mode spectral_norm takes a step of its power iteration, which changes its buffers; a load must not.
    module.training = False
    try:
        with torch.no_grad():
            for hook in module._forward_pre_hooks.values():
                if recomputes(hook):
                    hook(module, ())
    finally:
        module.training = training
