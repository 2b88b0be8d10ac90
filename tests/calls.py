"""How much work something is, in calls: Python's and C's. Unlike seconds it is the same on a busy machine."""

from __future__ import annotations

import contextlib
import cProfile
import signal
from collections.abc import Callable, Iterator


def calls_of(work: Callable[[], object], *, of_c: bool = True) -> int:
    """Return how many functions are called on this thread while `work` runs."""
    profile = cProfile.Profile(builtins=of_c)
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


@contextlib.contextmanager
def has_an_end(seconds: float = 60) -> Iterator[None]:
    """Stop what never ends, or not for ages, after this much processor time, and fail.

    That is no measurement: what has an end takes a tenth of it at most, however busy the machine is.
    """

    def stop(_number: int, _frame: object) -> None:
        raise AssertionError("it has no end")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
