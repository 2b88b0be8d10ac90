"""Finishes a load: ties parameters, initialises the missing ones, and checks that nothing is left on meta."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from torch import nn

from shardload._system.gc_freeze import gc_frozen
from shardload.errors import MismatchError
from shardload.keys import collapse
from shardload.loading.ties import retie
from shardload.model.shell import TensorSearch, modules_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardload.loading.class_values import ClassValues
    from shardload.model.aliases import References
    from shardload.model.shell import Shell
    from shardload.placement.target import Target


@gc_frozen
def finish(
    shell: Shell,
    filled: set[str],
    missing: Sequence[str],
    values: ClassValues | None,
    target: Target,
    references: References | None,
    undo: list[Callable[[], None]],
) -> list[str]:
    """Bring the model to its final state and return notes for the report.

    `values` initialises the parameters that are missing. `references` updates the model's other references to old
    parameters, None when it has none. `undo` takes a function for each change, which reverts the change.

    Raises MismatchError when a parameter, buffer or plain tensor attribute would be left on meta or with uninitialised
    memory.
    """
    if shell.ties:
        retie(shell, filled)
    notes = (
        values.initialise(shell, [name for name in missing if name not in filled], target) if values else []
    )
    if references is not None:
        references.renew(undo)
    target.finish(shell.model)
    left = sorted(_left_on_meta(shell.model))
    if left:
        raise MismatchError(
            f"{len(left)} tensors would be left without values: {', '.join(collapse(left)[:8])}",
            where=type(shell.model).__name__,
            cure="shardload can't follow how the class makes them: build the module for real and fill that",
        )
    return notes


def switch_to_eval(model: nn.Module) -> None:
    """Set a model to eval mode as `model.eval()` does, in a tenth of its time: 0.15 s less for 46,000 modules.

    A class that defines its own `eval`, `train` or property `training` has that called.
    """
    if type(model).eval is not nn.Module.eval:
        model.eval()
        return
    pending = [model]
    while pending:
        module = pending.pop()
        kind = type(module)
        if (
            kind.train is nn.Module.train
            and kind.__setattr__ is nn.Module.__setattr__
            and "training" in module.__dict__
        ):
            module.__dict__["training"] = False
            pending += [child for child in module._modules.values() if child is not None]
        else:
            module.train(mode=False)


def _left_on_meta(model: nn.Module) -> Iterator[str]:
    search = TensorSearch()
    for path, module in modules_of(model):
        tables = (module._parameters.items(), module._buffers.items(), search.among(module.__dict__))
        for name, value in chain.from_iterable(tables):
            if value is not None and value.is_meta and not nn.parameter.is_lazy(value):
                yield path + name
