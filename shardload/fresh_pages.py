"""Fresh pages: the first touch of new memory, by the kernel's large pages or by its small ones."""

from __future__ import annotations

import itertools
import mmap
import time

from shardload.mapping import advise

_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)
_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it
_TRIALS = 4
_LARGE = 2**21


class FreshPages:
    """Touches new memory, by large pages or small ones: by those that took less CPU time when both were tried.

    Large pages (2 MB a fault) cost a third where the kernel has them at hand: 0.27 s for 2.2 GB against 0.75 s. In a
    virtual machine that gives free memory back to its host it is just the large blocks that are given back, and the
    host has to find each again: 4.5 s. Nothing but trying tells. Threads may share one.
    """

    def __init__(self) -> None:
        self._count = itertools.count()
        self._seconds = {True: 0.0, False: 0.0}
        self._bytes = {True: 0, False: 0}

    def touch(self, address: int, nbytes: int) -> None:
        """Have pages behind a range of memory that has been allocated and not written to; its values are kept."""
        first, stop = (end // mmap.PAGESIZE * mmap.PAGESIZE for end in (address, address + nbytes))
        if _HUGEPAGE is None or stop - first < _LARGE:
            return
        number = next(self._count)
        large = number % 2 == 0 if number < _TRIALS else self.prefers_large
        started = time.thread_time()
        if large:
            advise(first, stop - first, _HUGEPAGE)
        # A kernel that can't is no loss: the first write does the same, a page at a time.
        advise(first, stop - first, _POPULATE_WRITE)
        self.note(large=large, nbytes=stop - first, seconds=time.thread_time() - started)

    @property
    def prefers_large(self) -> bool:
        """Whether large pages have cost no more a byte than small ones so far."""
        large, small = (self._seconds[size] / max(self._bytes[size], 1) for size in (True, False))
        return large <= small

    def note(self, *, large: bool, nbytes: int, seconds: float) -> None:
        """Count what a touch cost."""
        self._bytes[large] += nbytes
        self._seconds[large] += seconds
