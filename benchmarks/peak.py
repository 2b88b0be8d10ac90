"""Peak: the most anonymous memory that this process holds for a while."""

from __future__ import annotations

import threading

from benchmarks.memory import memory


def anonymous() -> int:
    """Return the anonymous bytes that this process holds now."""
    now = memory()
    return now[0] if now else 0


class Peak:
    """Samples the anonymous memory of this process on a thread, every so many seconds, until its end."""

    def __init__(self, seconds: float = 0.005) -> None:
        self._seconds, self._highest, self._ended = seconds, 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Return the most bytes that were seen, those of now included."""
        self._ended.set()
        self._thread.join()
        return max(self._highest, anonymous())

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._highest = max(self._highest, anonymous())
