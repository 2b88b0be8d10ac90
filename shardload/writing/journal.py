"""Journal: records the finished files of an output, so that the next writer can continue after a kill."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shardload._system.file_identity import FileIdentity, file_identity
from shardload.writing.kernel_copy import write_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LARGEST = 1 << 26  # bytes that are read; a merge writes about 200 for each tensor


class Journal:
    """A file of JSON lines: the job, each finished file with its identity, and the files that are being moved in.

    A file counts as finished while the file of that name has that identity. The journal is untrusted: reading stops at
    a line that is truncated or malformed. `descriptor` is the open file; the caller closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._end = 0
        self._job: str | None = None
        self._finished: dict[str, FileIdentity] = {}
        self.kept: dict[str, object] = {}
        self.moving: list[str] = []
        self.replaces = False
        content = os.pread(descriptor, min(os.fstat(descriptor).st_size, _LARGEST), 0)
        with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            for line in content.splitlines(keepends=True):
                self._read(json.loads(line))
                self._end += len(line)

    def _read(self, line: dict[str, Any]) -> None:
        if "moving" in line:
            self.moving = [str(name) for name in line["moving"]]
            self.replaces = line["replaces"] is True
        elif "name" in line:
            inode, size, changed = map(int, line["identity"])
            self._finished[str(line["name"])] = inode, size, changed
            self.kept[str(line["name"])] = line.get("kept")
        else:
            self._job = str(line["job"])

    @property
    def is_new(self) -> bool:
        """Whether the file says nothing."""
        return self._end == 0

    @property
    def has_finished(self) -> bool:
        """Whether any file is finished."""
        return bool(self._finished)

    def choose(self, job: str) -> None:
        """Continue the lines if they are of this job; else forget them."""
        if job != self._job:
            self._end, self._job = 0, job
            self._finished.clear()
            self.kept.clear()

    def begin(self) -> None:
        """Truncate the file to the lines of the job."""
        os.ftruncate(self._descriptor, self._end)
        if self._end == 0:
            self._append({"job": self._job})

    def add(self, name: str, path: Path, kept: object = None) -> None:
        """Record a file that is complete and flushed, with JSON data about it."""
        identity = file_identity(path)
        self._append({"name": name, "identity": identity} | ({} if kept is None else {"kept": kept}))
        self._finished[name] = identity
        self.kept[name] = kept

    def move(self, names: Sequence[str], *, replaces: bool) -> None:
        """Record that these files are being moved to their places, and whether they may replace other files."""
        self._append({"moving": list(names), "replaces": replaces})
        self.moving, self.replaces = list(names), replaces

    def holds(self, name: str, path: Path) -> bool:
        """Whether `path` is the finished file of this name, and not a link to it."""
        with suppress(OSError):
            regular = stat.S_ISREG(path.lstat().st_mode)
            return regular and self._finished.get(name) == file_identity(path)
        return False

    def _append(self, line: dict[str, object]) -> None:
        text = json.dumps(line).encode() + b"\n"
        write_all(self._descriptor, memoryview(text), self._end)
        os.fsync(self._descriptor)
        self._end += len(text)
