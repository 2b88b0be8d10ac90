"""Makes the kernel put pages behind new memory, with large pages where they are cheaper than small ones."""

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
    """Touches new memory with the page size, large or small, that has taken less time so far.

    Large pages (2 MB per fault) cost a third when the kernel has free ones: 0.27 s for 2.2 GB against 0.75 s. When the
    page cache fills the memory, the kernel has to free memory for each large page: 2 s. A virtual machine that returns
    free memory to its host returns the large blocks first: 4.5 s. Only a trial shows which case holds, and the answer
    changes: one slow touch turns large pages off, and every 32nd touch tries them again. Threads may share an object.
    """

    def __init__(self) -> None:
        self._count = itertools.count()
        self._seconds_a_byte = {True: 0.0, False: 0.0}

    def touch(self, address: int, nbytes: int) -> None:
        """Make the kernel allocate the pages of a range of memory before its first write; values in it are kept."""
        first, stop = (end // mmap.PAGESIZE * mmap.PAGESIZE for end in (address, address + nbytes))
        if _HUGEPAGE is None or stop - first < _LARGE:
            return
        number = next(self._count)
        large = number % 2 == 0 if number < _TRIALS else self.prefers_large or number % _AGAIN == 0
        started = time.perf_counter()
        if large:
            advise(first, stop - first, _HUGEPAGE)
        # On an older kernel this call does nothing, and the first write allocates the pages one at a time.
        advise(first, stop - first, _POPULATE_WRITE)
        self.note(large=large, nbytes=stop - first, seconds=time.perf_counter() - started)

    @property
    def prefers_large(self) -> bool:
        """Whether the last touch with large pages cost no more per byte than touches with small pages do."""
        return self._seconds_a_byte[True] <= self._seconds_a_byte[False]

    def note(self, *, large: bool, nbytes: int, seconds: float) -> None:
        """Note the cost of a touch; small pages keep a moving average, which one interruption changes little."""
        now, before = seconds / nbytes, self._seconds_a_byte[large]
        self._seconds_a_byte[large] = now if large or not before else 0.8 * before + 0.2 * now
