"""Keeps Python's collector from visiting old objects again and again while many new ones are made."""

from __future__ import annotations

import functools
import gc
import os
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_frozen: list[bool] = []  # one entry while a call of ours has frozen what is old


def gc_frozen(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let the collector pass over all objects that are older than a call of `function`, until the call ends.

    The collector stays on, for this thread and all others: garbage that is made meanwhile is collected. Without this,
    it visits the million objects of torch at each full collection: half the time of reading a header with 90,000
    tensors, and of building a shell of 23,000 modules. After the call, what it made is old too.

    Does nothing where the program has frozen objects itself. A call inside another adds nothing.
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if _frozen or gc.get_freeze_count():
            return function(*args, **kwargs)
        # In this frame, and with no call between `del` and `unfreeze`: a signal is handled after calls, so that Ctrl-C
        # leaves nothing frozen.
        try:
            _frozen.append(True)
            gc.freeze()
            return function(*args, **kwargs)
        finally:
            del _frozen[:]
            gc.unfreeze()

    return call


def freeze_more() -> None:
    """Inside such a call, let the collector pass over what was made so far too; does nothing elsewhere."""
    if _frozen:
        gc.freeze()


def _in_child() -> None:
    """In a forked child no other thread's call goes on, and none of them ends."""
    if _frozen:
        _frozen.clear()
        gc.unfreeze()


os.register_at_fork(after_in_child=_in_child)
