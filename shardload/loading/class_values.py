"""Values that a class gives to parameters and buffers: for those that no stored tensor fills, or fills in part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload._system.heap import give_back
from shardload.errors import MismatchError
from shardload.keys import collapse
from shardload.loading.ties import retie
from shardload.model.rebuild import class_values
from shardload.model.shell import modules_of

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from torch import nn

    from shardload.model.shell import Shell
    from shardload.placement.target import Target


class ClassValues:
    """The values of the named parameters and buffers, made by running the constructor again.

    They are made before the first weight is read: what a constructor computes with needs memory too, and that memory
    is free again when the weights come. `values` lacks the names that the second run does not make. NaN marks memory
    that the class leaves uninitialised; `uninitialised` are the names that have some.
    """

    def __init__(self, shell: Shell, names: Collection[str]) -> None:
        self.values: dict[str, torch.Tensor] = class_values(shell, names)
        self.uninitialised = {name for name, value in self.values.items() if bool(value.isnan().any())}
        give_back()

    def initialise(self, shell: Shell, names: list[str], target: Target) -> list[str]:
        """Give parameters on meta their values, keep the others as they are, and return notes for the report.

        Raises MismatchError for names that the class leaves uninitialised.
        """
        modules = dict(modules_of(shell.model))
        lacking = [name for name in names if (old := _get(modules, name)) is not None and old.is_meta]
        # A buffer has its values already, unless the class left its memory uninitialised.
        bad = [name for name in names if name in self.uninitialised]
        bad += [name for name in lacking if name not in self.values]
        if bad:
            raise MismatchError(
                f"{', '.join(collapse(bad)[:8])}: not in the checkpoint, and "
                + ("the class leaves it uninitialised" if shell.make else "build_shell did not make it"),
                cure="initialise it in the class's constructor, or build the module for real and pass it to fill()",
            )
        for name in lacking:
            prefix, _, leaf = name.rpartition(".")
            target.put(modules[f"{prefix}." if prefix else ""], leaf, target.place(name, self.values[name]))
        made = set(lacking)
        retie(shell, made)
        kept = [name for name in names if name not in made]
        return [
            *(f"{pattern}: not in the checkpoint, initialised by the class" for pattern in collapse(lacking)),
            *(f"{pattern}: not in the checkpoint, kept as it was" for pattern in collapse(kept)),
        ]


def _get(modules: dict[str, nn.Module], name: str) -> nn.Parameter | None:
    prefix, _, leaf = name.rpartition(".")
    module = modules.get(f"{prefix}." if prefix else "")
    return module._parameters.get(leaf) if module is not None else None
