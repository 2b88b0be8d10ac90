"""A second run of a constructor: the values that a class gives to parameters which no checkpoint fills."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.model.construction import Construction
from shardload.model.meta_init import constructed
from shardload.model.shell import modules_of
from shardload.model.wrapper_tensors import is_wrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    import torch
    from torch import nn

    from shardload.model.shell import Shell


def class_values(shell: Shell, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the values that the class gives the named parameters and buffers, by running its constructor again.

    NaN marks memory that the constructor leaves uninitialised. Names are left out that the second run does not make, or
    makes in another order.
    """
    if shell.make is None or not names:
        return {}
    now = dict(_stored_tensors(shell.model))
    birth = {id(parameter): ordinal for ordinal, parameter in enumerate(shell.created)}
    real = {birth[id(now[name])] for name in names if name in now and id(now[name]) in birth}
    if any(is_wrapper(now[name]) for name in names if name in now):
        # Sharding put other parameters in the place of those that the constructor made: they keep the names.
        real |= _ordinals_of(set(names), shell.make, shell.dtype)
    fresh = dict(_stored_tensors(rebuild_with(shell.make, real, shell.dtype)))
    return {name: fresh[name].detach() for name in names if name in fresh and not fresh[name].is_meta}


def _stored_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in modules_of(model):
        for table in (module._parameters, module._buffers):
            yield from ((path + name, tensor) for name, tensor in table.items() if tensor is not None)


def _ordinals_of(names: set[str], make: Callable[[], nn.Module], dtype: torch.dtype | None) -> set[int]:
    construction = Construction(frozenset())
    model = constructed(make, construction, dtype)
    named = {id(tensor) for name, tensor in _stored_tensors(model) if name in names}
    return {ordinal for ordinal, parameter in enumerate(construction.created) if id(parameter) in named}


def rebuild_with(
    make: Callable[[], nn.Module], real: set[int], dtype: torch.dtype | None = None
) -> nn.Module:
    """Run `make()` once more, with real memory for the parameters whose ordinals are in `real`.

    The n-th Parameter that a constructor creates is the same one in every run: `Shell.created` has the order.
    Memory that a constructor leaves uninitialised is filled with NaN, so that the caller can recognise it.
    """
    construction = Construction(frozenset(real))
    model = constructed(make, construction, dtype)
    construction.settle(model.modules())
    return model
