"""Processes that are killed at a chosen step of their work with files, the step itself half done."""

from __future__ import annotations

import os
import pathlib
import signal
from pathlib import Path

STEPS = (
    "open", "pwrite", "copy_file_range", "fsync", "ftruncate", "link", "mkdir", "unlink", "rmdir", "replace", "rename",
)  # fmt: skip


def die_at(limit: int) -> None:
    """Let this process kill itself at its step number `limit` from now on."""
    done = 0
    flush_nothing()

    def patched(name, call):
        def counted(*args, **options):
            nonlocal done
            done += 1
            if done == limit:
                # Half of a write has reached the file: what a kill leaves.
                if name == "pwrite" and len(args[1]) > 1:
                    call(args[0], args[1][: len(args[1]) // 2], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        exchange(name, counted)

    for name in STEPS:
        patched(name, getattr(os, name))


def exchange(name: str, call) -> None:
    """Put a function in the place of one of `os`; pathlib of Python 3.10 has most of them in a class, too."""
    kept = getattr(pathlib, "_NormalAccessor", object)
    if vars(kept).get(name) is getattr(os, name):
        setattr(kept, name, staticmethod(call))
    setattr(os, name, call)


def flush_nothing() -> None:
    """A killed process loses nothing that the kernel has: here flushing would only take time."""
    os.fsync = lambda _descriptor: None


def killed_at_every_step(prepare, run, root: Path, each: int = 1):
    """Yield a folder for each step of `run(folder)`, in which it was killed there; then one in which it was not.

    `prepare(folder)` comes before, unharmed. `each=3` leaves out two steps of three.
    """
    for limit in range(1, 1000, each):
        folder = root / str(limit)
        prepare(folder)
        child = os.fork()
        if child == 0:
            try:
                die_at(limit)
                run(folder)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        yield folder
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
