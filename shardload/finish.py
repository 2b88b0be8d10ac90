"""The end of a load: ties, parameters that were allowed to be missing, and nothing left on meta."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload.errors import MismatchError
from shardload.shell import modules_of, rebuild_with
from shardload.template import collapse
from shardload.ties import retie

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardload.shell import Shell
    from shardload.targets.target import Target


def finish(
    shell: Shell, filled: set[str], missing: Sequence[str], target: Target, renew: Callable[[], None]
) -> list[str]:
    """Bring the model to its end state and return lines for the report.

    `renew` leads whatever else points at old parameters to the new ones, once all of them are there.

    Raises MismatchError when a parameter, buffer or plain tensor attribute would be left on meta or with the
    bytes that happened to be in memory.
    """
    retie(shell, filled)
    notes = _initialise(shell, [name for name in missing if name not in filled], target)
    renew()
    target.finish(shell.model)
    left = sorted(name for name, tensor in _tensors(shell.model) if tensor.is_meta)
    if left:
        raise MismatchError(
            f"{len(left)} tensors would be left without values: {', '.join(collapse(left)[:8])}",
            where=type(shell.model).__name__,
            cure="the class makes them in a way that can't be followed: fill a module that was built for real",
        )
    return notes


def _initialise(shell: Shell, names: list[str], target: Target) -> list[str]:
    """Give parameters that no tensor fills the values that the class gives them, by running its constructor again."""
    modules = dict(modules_of(shell.model))
    lacking = {
        name: tensor for name in names if (tensor := _get(modules, name)) is not None and tensor.is_meta
    }
    if not lacking:
        return [f"{pattern}: not in the checkpoint, kept as it was" for pattern in collapse(names)]
    birth = {id(parameter): ordinal for ordinal, parameter in enumerate(shell.created)}
    ordinals = {birth.get(id(tensor)) for tensor in lacking.values()}
    if shell.make is None or None in ordinals:
        raise _uninitialised(list(lacking), "its module was not made by build_shell")
    fresh = dict(modules_of(rebuild_with(shell.make, {n for n in ordinals if n is not None})))
    bad = []
    for name, old in lacking.items():
        value = _get(fresh, name)
        if value is None or value.is_meta or bool(torch.isnan(value).any()):
            bad.append(name)
            continue
        prefix, _, leaf = name.rpartition(".")
        made = nn.Parameter(target.place(name, value.detach()), requires_grad=old.requires_grad)
        setattr(modules[f"{prefix}." if prefix else ""], leaf, made)
    if bad:
        raise _uninitialised(bad, "the class leaves it uninitialised")
    retie(shell, set(lacking))
    return [f"{pattern}: not in the checkpoint, initialised by the class" for pattern in collapse(lacking)]


def _uninitialised(names: list[str], why: str) -> MismatchError:
    return MismatchError(
        f"{', '.join(collapse(names)[:8])}: not in the checkpoint, and {why}",
        cure="initialise it in the class's constructor, or build the module for real and pass it to fill()",
    )


def _get(modules: dict[str, nn.Module], name: str) -> nn.Parameter | None:
    prefix, _, leaf = name.rpartition(".")
    module = modules.get(f"{prefix}." if prefix else "")
    return module._parameters.get(leaf) if module is not None else None


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in modules_of(model):
        for slots in (module._parameters, module._buffers, module.__dict__):
            for name, value in slots.items():
                if isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value):
                    yield path + name, value
