"""Ranks: the processes that load or save one model together. Imports torch.distributed only where there are some."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shardload._system.agreement import Agreement

TIMEOUT = 3600.0  # seconds, the default of the entry points


def has_ranks() -> bool:
    """Whether this process is one of a process group."""
    return bool(getattr(sys.modules.get("torch.distributed.distributed_c10d"), "is_initialized", bool)())


class OneProcess:
    """Stands for the ranks of an operation that this process does alone: nobody has to agree."""

    is_first = True
    judging = same_random = staticmethod(nullcontext)

    def __bool__(self) -> Literal[False]:
        return False

    def meet(self, place: str) -> None:
        """Wait for nobody."""


@contextmanager
def together(over: Callable[[], tuple[int, ...]], timeout: float) -> Iterator[Agreement | OneProcess]:
    """Let the ranks of an operation end the block alike: an error of one is raised on all, with its number."""
    ranks = over() if has_ranks() else ()
    if len(ranks) < 2:
        yield OneProcess()
        return
    from shardload._system import agreement

    with agreement.together(ranks, timeout) as agreed:
        yield agreed


@contextmanager
def told_early(
    over: Callable[[Mapping[str, Any]], tuple[int, ...]], given: Callable[[], Mapping[str, Any]]
) -> Iterator[None]:
    """Tell the other ranks of a call of an error that ends it before they agree: they would wait for this rank.

    `given` returns the arguments of the call by name, as far as they are known, and `over` its ranks by these.
    """
    if not has_ranks():
        yield
        return
    from shardload._system import opening

    begun = opening.agreements()
    try:
        yield
    except Exception as error:
        if opening.agreements() != begun:
            raise
        with ExitStack() as others:
            try:
                arguments = given()
                timeout = float(arguments.get("timeout", TIMEOUT))
                others.enter_context(together(lambda: over(arguments), timeout))
            except Exception:  # noqa: BLE001 - such arguments name no ranks
                opening.leave_notice(error)
            raise
