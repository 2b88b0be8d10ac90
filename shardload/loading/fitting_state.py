"""state_that_fits: which of several state dicts of a file is the model's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.errors import Cures, OfReport, ShardloadError, UnsafeError, Wording
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

    `error` names all of them, and is raised again where none fits, or several do: then with the cures that work, which
    are more than the name where a key map or the like makes it fit.
    """
    fitting = []
    cured = []
    for name in getattr(error, "names", ()):
        chosen = replace(place, state_dict=name)
        checkpoint = open_checkpoint(chosen)
        try:
            report = check(shell(checkpoint), checkpoint, key_map)
        except UnsafeError:  # says nothing of the state dict, and is the caller's to decide
            raise
        except ShardloadError:
            continue
        if report.ok:
            fitting.append(chosen)
        elif _can_be_typed(report.cure):
            cured.append(Wording("pass {state_dict} and {0}", report.cure, state_dict=name))
    if len(fitting) == 1:
        return fitting[0]
    whole = [cure for cure in cured if "allow_missing" not in cure.keywords] or cured
    cures = [Wording("pass {state_dict}", state_dict=each.state_dict) for each in fitting] or whole
    if cures:
        error.cure = Cures(*cures)
    raise error


def _can_be_typed(cure: str | None) -> bool:
    """Whether a cure is keywords alone, none of which the reader has to choose or to take from a report."""
    return (
        isinstance(cure, Wording)
        and not isinstance(cure, Cures)
        and bool(cure.keywords)
        and not any(value is ... or isinstance(value, OfReport) for value in cure.keywords.values())
    )
