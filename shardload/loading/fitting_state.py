"""state_that_fits: which of several state dicts of a file is the model's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.errors import Cures, ShardloadError, UnsafeError, Wording
from shardload.loading.fill import check

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.errors import UnsupportedError
    from shardload.model.shell import Shell
    from shardload.where import Where


def state_that_fits(
    error: UnsupportedError, place: Where, shell: Callable[[Checkpoint], Shell], key_map: Any = None
) -> Where:
    """Return the place with the name of the only state dict that fits the model.

    `error` names all of them, and is raised again where none fits, or several do: then with the cures that work.
    """
    fitting = []
    for name in getattr(error, "names", ()):
        chosen = replace(place, state_dict=name)
        checkpoint = open_checkpoint(chosen)
        try:
            fits = check(shell(checkpoint), checkpoint, key_map).ok
        except UnsafeError:  # says nothing of the state dict, and is the caller's to decide
            raise
        except ShardloadError:
            fits = False
        if fits:
            fitting.append(chosen)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        error.cure = Cures(*(Wording("pass {state_dict}", state_dict=each.state_dict) for each in fitting))
    raise error
