"""Measures the memory of this process: anonymous and file-backed bytes apart."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


class PeakSampler:
    """Samples the memory of the process on a thread while the `with` block runs; `peak` holds the highest figures.

    `interval` is in seconds. A sample costs about 30 µs. A peak between two samples is missed.
    """

    def __init__(self, interval: float = 0.01) -> None:
        self.interval = interval
        self.peak = Memory(0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shardload-peak", daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self.sample()

    def sample(self) -> Memory:
        """Measure now and return the figure."""
        now = measure()
        self.peak = Memory(max(now.anon, self.peak.anon), max(now.file, self.peak.file))
        return now

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()
