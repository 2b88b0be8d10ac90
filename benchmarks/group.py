"""Makes a memory cgroup (version 1 or 2) for one measured process, where the system allows that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class NoGroupError(Exception):
    """This process can't make a memory cgroup: that takes root and a writable cgroup file system."""


class MemoryGroup:
    """A `with` block for one process with a limit of `limit` bytes; `limited()` counts how often it met the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._is_v2, base = _base()
        self.path = base / f"shardload-bench-{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            self.path.mkdir()
            if self._is_v2:
                self._write("memory.max")
                swap = self.path / "memory.swap.max"
                if swap.exists():
                    swap.write_text("0")
            else:
                self._write("memory.limit_in_bytes")
        except OSError as error:
            if self.path.is_dir():
                self.path.rmdir()
            raise NoGroupError(str(error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.path.rmdir()

    @property
    def procs(self) -> str:
        return str(self.path / "cgroup.procs")

    def limited(self) -> int:
        if self._is_v2:
            events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
            return int(events["max"])
        return int((self.path / "memory.failcnt").read_text())

    def _write(self, name: str) -> None:
        (self.path / name).write_text(str(self._limit))


def _base() -> tuple[bool, Path]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            for base in (Path("/sys/fs/cgroup/memory", path.lstrip("/")), Path("/sys/fs/cgroup/memory")):
                if os.access(base, os.W_OK):
                    return False, base
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        control = root / "cgroup.subtree_control"
        if control.exists() and os.access(root, os.W_OK):
            try:
                if "memory" not in control.read_text().split():
                    control.write_text("+memory")
            except OSError:
                continue
            return True, root
    raise NoGroupError("that takes root and a writable memory cgroup")
