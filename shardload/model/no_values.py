"""Calls of torch in which some tensors have values and others, on meta, have none: neither has the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload.model.construction import memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from shardload.model.construction import Construction

_META = torch.device("meta")


def is_mixed(given: Sequence[torch.Tensor]) -> bool:
    """Whether some of these tensors have values and others have none."""
    return len(given) > 1 and len({one.is_meta for one in given}) > 1


def call_mixed(
    construction: Construction,
    call: Callable[[Any, Any], Any],
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: Sequence[torch.Tensor],
) -> Any:
    """Return `call(args, kwargs)`, on meta, where torch would refuse two devices or compute with what is not there.

    A tensor that `func` writes to is put on meta. What only has the shape of another tensor (`expand_as`) is a view of
    an argument, and stays.
    """
    target = kwargs.get("out", args[0] if args and _writes(func) else None)
    if isinstance(target, torch.Tensor):
        if not target.is_meta and not construction.empty(target):
            raise NotImplementedError(f"{func.__name__} gets a meta tensor for one that existed before")
        return target
    try:
        made = call(args, kwargs)
    except (RuntimeError, NotImplementedError):
        made = call(tuple(map(_on_meta, args)), {name: _on_meta(value) for name, value in kwargs.items()})
    return _on_meta(made, but={memory_of(one) for one in given})


def _writes(func: Callable[..., Any]) -> bool:
    """Whether a function writes to its first argument: `add_`, `+=`, `[…] =`."""
    name = func.__name__
    return name == "__setitem__" or (name.startswith("__i") if name.endswith("__") else name.endswith("_"))


def _on_meta(value: Any, but: Container[int] = ()) -> Any:
    """Return a tensor on meta in place of one with values, also in lists; `but` are storages that stay."""
    if type(value) in (list, tuple):
        return type(value)(_on_meta(one, but) for one in value)
    if not isinstance(value, torch.Tensor) or value.is_meta or memory_of(value) in but:
        return value
    return value.detach().to(_META)
