"""A fork waits for an import of this package on another thread, so that the child can import too."""

from __future__ import annotations

import os
import threading

from shardload._system.import_lock import IMPORTS


def test_a_fork_waits_for_an_import():
    inside, leave, order = threading.Event(), threading.Event(), []

    def importing() -> None:
        with IMPORTS.lock:
            inside.set()
            leave.wait(120)
            order.append("imported")

    thread = threading.Thread(target=importing)
    thread.start()
    assert inside.wait(120)
    threading.Timer(0.05, leave.set).start()
    child = os.fork()
    if child == 0:
        os._exit(not IMPORTS.lock.acquire(timeout=120))
    order.append("forked")
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    assert order == ["imported", "forked"]


def test_a_thread_that_imports_may_fork():
    with IMPORTS.lock:
        child = os.fork()
        if child == 0:
            os._exit(not IMPORTS.lock.acquire(timeout=120))
        assert os.waitpid(child, 0)[1] == 0
    assert IMPORTS.lock.acquire(timeout=120)
    IMPORTS.lock.release()
