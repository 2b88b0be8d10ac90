"""Measures the memory of this process: anonymous and file-backed bytes apart."""

from __future__ import annotations

import _thread
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self


@dataclass(frozen=True)
class Memory:
    """Resident bytes. The kernel must keep anonymous memory; it can drop file-backed pages and read them again."""

    anon: int
    file: int

    def to_dict(self) -> dict[str, int]:
        """Return both figures, in bytes."""
        return {"anon": self.anon, "file": self.file}


def size_of(nbytes: float) -> str:
    """Return bytes as people read them, in powers of ten: "312 B", "4.2 kB", "12.5 MB", "12.49 GB"."""
    if abs(nbytes) >= 10**9:
        return f"{nbytes / 1e9:.2f} GB"
    if abs(nbytes) >= 10**6:
        return f"{nbytes / 1e6:.1f} MB"
    if abs(nbytes) >= 10**3:
        return f"{nbytes / 1e3:.1f} kB"
    return f"{nbytes:.0f} B"


def measure() -> Memory:
    """Return the resident memory of this process, from RssAnon and RssFile of /proc/self/status.

    Both are 0 on a system without that file (macOS, Windows).
    """
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return Memory(0, 0)
    return Memory(_field(status, b"RssAnon:"), _field(status, b"RssFile:"))


def _field(status: bytes, name: bytes) -> int:
    at = status.find(name)
    if at < 0:
        return 0
    return int(status[at + len(name) :].split(None, 1)[0]) * 1024


def _sample_until(
    stop: _thread.LockType,
    ended: _thread.LockType,
    sampler: Callable[[], PeakSampler | None],
    interval: float,
) -> None:
    try:
        while not stop.acquire(timeout=interval) and (alive := sampler()) is not None:
            alive.sample()
            del alive
    finally:
        ended.release()


class PeakSampler:
    """Samples the memory of the process on a thread while the `with` block runs; `peak` holds the highest figures.

    `interval` is in seconds. A sample costs about 30 µs. A peak between two samples is missed.
    """

    def __init__(self, interval: float = 0.01) -> None:
        self.interval = interval
        self.peak = Memory(0, 0)
        # Locks and threads of C: Ctrl-C inside Python's Event and Thread may leave them broken.
        self._stop, self._ended = _thread.allocate_lock(), _thread.allocate_lock()

    def sample(self) -> Memory:
        """Measure now and return the figure."""
        now = measure()
        self.peak = Memory(max(now.anon, self.peak.anon), max(now.file, self.peak.file))
        return now

    def __enter__(self) -> Self:
        self.sample()
        self._stop.acquire()
        self._ended.acquire()
        # The thread does not hold the sampler, and ends with it: Ctrl-C may come before the `with` block has begun.
        work = self._stop, self._ended, weakref.ref(self), self.interval
        _thread.start_new_thread(_sample_until, work)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.release()
        self._ended.acquire()
        self.sample()
