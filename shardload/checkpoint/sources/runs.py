"""Runs: which bytes of a file one request fetches, and the memory that they go into, piece by piece."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Part = tuple[int, memoryview]
"""Bytes of a file from an offset on, and the writable memory that they fill."""

RUN = 8 * 2**20
"""Bytes that one request fetches at most: several connections share a tensor of more."""

GAP = 2**20
"""Bytes between two parts from which on each part is worth a request of its own; fewer are fetched and dropped."""

AHEAD = 2**25
"""Bytes that are fetched at most before they are wanted, beside the tensor that is."""

CONNECTIONS = 4
"""Requests at a time."""

_SCRATCH = 2**16
_LONG = 2**17  # bytes that are worth a call of C


class Run:
    """Bytes that follow one another in a file, from `start` to `stop`, on their way into the memory of `parts`.

    `at` is the next byte that is wanted. Bytes between two parts are dropped.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.start = parts[0][0]
        self.stop = max(offset + len(memory) for offset, memory in parts)
        self._scratch = memoryview(bytearray(0))
        self.rewind(self.start)

    def rewind(self, at: int) -> None:
        """Want the bytes from `at` on, again."""
        self.at = at
        self._next = sum(offset + len(memory) <= at for offset, memory in self.parts)

    @property
    def left(self) -> int:
        """Bytes that are still wanted."""
        return self.stop - self.at

    def space(self) -> memoryview:
        """Return the memory for the next bytes; what is written to it counts once `advance` is told."""
        offset, memory = self.parts[self._next]
        if self.at >= offset:
            return memory[self.at - offset :]
        if not self._scratch:
            self._scratch = memoryview(bytearray(_SCRATCH))
        return self._scratch[: offset - self.at]

    def advance(self, nbytes: int) -> None:
        """Count bytes that were written to `space()`."""
        self.at += nbytes
        while self._next < len(self.parts):
            offset, memory = self.parts[self._next]
            if self.at < offset + len(memory):
                return
            self._next += 1

    def take(self, piece: bytes) -> None:
        """Copy the next bytes to where they belong; what is more than wanted is dropped."""
        done, nbytes = 0, min(len(piece), self.left)
        while done < nbytes:
            space = self.space()
            taken = min(len(space), nbytes - done)
            if taken < _LONG:
                space[:taken] = piece[done : done + taken]
            else:  # without the interpreter's lock: several connections copy at a time
                start = ctypes.cast(ctypes.c_char_p(piece), ctypes.c_void_p).value or 0
                ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(space)), start + done, taken)
            self.advance(taken)
            done += taken


def runs_of(parts: Iterable[Part], longest: int = RUN) -> list[Run]:
    """Return the runs that fill some parts, in the order of the file: near ones share a run, long ones are cut."""
    runs: list[list[Part]] = []
    reached = -1
    for offset, memory in sorted(parts, key=lambda part: part[0]):
        for at in range(0, len(memory), longest):
            piece = memory[at : at + longest]
            start, stop = offset + at, offset + at + len(piece)
            # Parts that overlap can't share a run: each byte of a run goes to one place.
            if not runs or not reached <= start < reached + GAP or stop - runs[-1][0][0] > longest:
                runs.append([])
            runs[-1].append((start, piece))
            reached = stop
    return [Run(run) for run in runs]


def fetch_runs(runs: Sequence[Run], fetch: Callable[[Run], None]) -> None:
    """Fetch all runs, on several connections where there are several."""
    if len(runs) < 2:
        for run in runs:
            fetch(run)
        return
    with ThreadPoolExecutor(min(CONNECTIONS, len(runs))) as pool:
        jobs = [pool.submit(fetch, run) for run in runs]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_parts(descriptor: int, parts: Iterable[Part]) -> int | None:
    """Fill parts from an open file; return where the file ended inside one, or None when all are full."""
    for offset, memory in parts:
        at = 0
        while at < len(memory):
            got = os.preadv(descriptor, [memory[at:]], offset + at)
            if got == 0:
                return offset + at
            at += got
    return None
