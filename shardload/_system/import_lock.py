"""ImportLock: no fork while another thread imports a part of this package, which would hang an import of the child."""

from __future__ import annotations

import os
import threading

_LONGEST = 10.0  # seconds that a fork waits: an import that waits for the thread that forks would never end


class ImportLock:
    """A lock that a fork waits for: `with IMPORTS.lock:` stands around an import that may be the first of a module.

    Python holds a lock for each module while it is imported (`importlib._bootstrap._ModuleLock`). A child that is
    forked meanwhile gets the lock held, and no thread that gives it back: it hangs when it imports that module.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._held = False
        os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._in_child)

    def _before(self) -> None:
        self._held = self.lock.acquire(timeout=_LONGEST)

    def _after(self) -> None:
        if self._held:
            self.lock.release()

    def _in_child(self) -> None:
        if self._held:
            self.lock.release()
        else:
            self.lock = threading.RLock()


IMPORTS = ImportLock()
