"""fitting_class: the first class of a repo's `auto_map`, or the one that `architectures` names, by the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from shardload.errors import MismatchError, ShardloadError, UnsafeError, Wording
from shardload.keymap import KeyMap
from shardload.loading.judge import Comparison
from shardload.loading.mismatch import mismatch
from shardload.placement.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.model.shell import Shell


class Choice(Protocol):
    """A class that makes the model; `named` is the other one that the repo names, with how to resolve it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def named(self) -> Any: ...  # noqa: D102
    @property
    def unnamed(self) -> Any: ...  # noqa: D102


C = TypeVar("C", bound=Choice)


def fitting_class(
    resolved: C,
    shell: Shell,
    checkpoint: Checkpoint,
    build: Callable[[C], Shell],
    key_map: Any = None,
    **leniency: Any,
) -> tuple[C, Shell, str]:
    """Return the class that fits the checkpoint's names and shapes better, its shell, and a line for the report.

    `shell` is that of `resolved`, whose `named` is the other class; `build` makes the other's. Where both fit
    equally, the first stays. `leniency` are `strict`, `allow_missing` and `allow_unexpected`. Reads no weight.
    """
    named = resolved.named
    assert named is not None
    choose = Wording("{auto_class} chooses it", auto_class=named.auto_class)
    rules = None if key_map is None else KeyMap.of(key_map)

    def faults(one: Shell) -> int:
        return len(Comparison(one, checkpoint, rules, Target()).judge(**leniency).faults)

    try:
        wrong = faults(shell)
        other = named.resolve() if wrong else None
        other_shell = build(other) if other is not None else None
        other_wrong = faults(other_shell) if other_shell is not None else wrong
    except UnsafeError:
        raise
    except ShardloadError:  # what is wrong with the first is told by the load itself
        named.put_back()
        return resolved, shell, f"architectures names {named.name}, which does not serve here"
    if other is None or other_shell is None or other_wrong >= wrong:
        named.put_back()
        return (
            resolved,
            shell,
            Wording("architectures names {0}, which was not taken: {1}", named.name, choose),
        )
    better = "fits" if not other_wrong else "fits better"
    line = f"{other.name}, which architectures names, {better}: auto_map's first, {resolved.name}, has {wrong} faults"
    return other, other_shell, line


def with_unnamed(
    error: MismatchError,
    resolved: Choice,
    checkpoint: Checkpoint,
    build: Callable[[Any], Shell],
    key_map: Any = None,
    **leniency: Any,
) -> MismatchError:
    """Return the error of a refused load; its cure names a class that `auto_map` lacks, where that has no fault.

    That class is the one that `architectures` names, and lies in the code that runs anyway. Reads no weight.
    """
    if error.report is None or resolved.unnamed is None:
        return error
    other = resolved.unnamed()
    if other is None:
        return error
    rules = None if key_map is None else KeyMap.of(key_map)
    try:
        shell = build(other.resolve())
        faults = Comparison(shell, checkpoint, rules, Target()).judge(**leniency).faults
    except ShardloadError:  # what is wrong with the first is told
        return error
    finally:
        other.put_back()
    if faults:
        return error
    cure = (
        f"the repo's own {other.name}, which architectures names and auto_map lacks, fits: set "
        f'auto_map.{other.auto_class} to "{other.reference}" in config.json'
    )
    return mismatch(error.report, error.report.faults, cure)
