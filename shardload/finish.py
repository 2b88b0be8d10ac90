"""The end of a load: ties, parameters that were allowed to be missing, and nothing left on meta."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.errors import MismatchError
from shardload.shell import TensorTypes, class_values, modules_of
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
    """Give what no tensor fills the values that the class gives it, by running its constructor again."""
    modules = dict(modules_of(shell.model))
    lacking = {
        name: tensor for name in names if (tensor := _get(modules, name)) is not None and tensor.is_meta
    }
    # A buffer has its value already, unless the class left its memory as it was.
    suspects = [name for name in names if name not in lacking] if shell.make is not None else []
    values = class_values(shell, [*lacking, *suspects])
    bad = [name for name in values if bool(values[name].isnan().any())]
    bad += [name for name in lacking if name not in values]
    if bad:
        raise _uninitialised(
            bad, "the class leaves it uninitialised" if shell.make else "build_shell did not make it"
        )
    for name, old in lacking.items():
        prefix, _, leaf = name.rpartition(".")
        made = nn.Parameter(target.place(name, values[name]), requires_grad=old.requires_grad)
        setattr(modules[f"{prefix}." if prefix else ""], leaf, made)
    retie(shell, set(lacking))
    kept = [name for name in names if name not in lacking]
    return [
        *(f"{pattern}: not in the checkpoint, initialised by the class" for pattern in collapse(lacking)),
        *(f"{pattern}: not in the checkpoint, kept as it was" for pattern in collapse(kept)),
    ]


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
    tensors = TensorTypes()
    for path, module in modules_of(model):
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for slots in tables:
            for name, value in slots.items():
                if tensors[type(value)] and not nn.parameter.is_lazy(value):
                    yield path + name, value
