"""Fresh pages: the first touch of new memory, by the kernel's large pages or by its small ones."""

from __future__ import annotations

import itertools
import mmap
import time

from shardload._system.file_mapping import advise

_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)
_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it
_TRIALS, _AGAIN = 4, 32
_LARGE = 2**21


class FreshPages:
    """Touches new memory, by large pages or small ones: by those that take less time here and now.

    Large pages (2 MB a fault) cost a third where the kernel has them at hand: 0.27 s for 2.2 GB against 0.75 s. Where
    other files' pages fill the memory it has to make room for each, 2 s; in a virtual machine that gives free memory
    back to its host it is just the large blocks that were given back, 4.5 s. Nothing but trying tells, and not for
    long: the first expensive one ends it, and one in 32 tries again. Threads may share one.
    """

    def __init__(self) -> None:
        self._count = itertools.count()
        self._seconds_a_byte = {True: 0.0, False: 0.0}

    def touch(self, address: int, nbytes: int) -> None:
        """Have pages behind a range of memory that has been allocated and not written to; its values are kept."""
        first, stop = (end // mmap.PAGESIZE * mmap.PAGESIZE for end in (address, address + nbytes))
        if _HUGEPAGE is None or stop - first < _LARGE:
            return
        number = next(self._count)
        large = number % 2 == 0 if number < _TRIALS else self.prefers_large or number % _AGAIN == 0
        started = time.perf_counter()
        if large:
            advise(first, stop - first, _HUGEPAGE)
        # A kernel that can't is no loss: the first write does the same, a page at a time.
        advise(first, stop - first, _POPULATE_WRITE)
        self.note(large=large, nbytes=stop - first, seconds=time.perf_counter() - started)

    @property
    def prefers_large(self) -> bool:
        """Whether the last large pages cost no more a byte than small ones do."""
        return self._seconds_a_byte[True] <= self._seconds_a_byte[False]

    def note(self, *, large: bool, nbytes: int, seconds: float) -> None:
        """Note what a touch cost; of small pages a moving average, which one interruption does not change much."""
        now, before = seconds / nbytes, self._seconds_a_byte[large]
        self._seconds_a_byte[large] = now if large or not before else 0.8 * before + 0.2 * now
