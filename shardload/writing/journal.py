"""Journal: which files of an output are finished, so that a run which was killed can be made whole."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from shardload._system.atomic_file import write_atomically
from shardload._system.file_identity import FileIdentity, file_identity

if TYPE_CHECKING:
    from pathlib import Path


class Journal:
    """A text file of JSON lines: the job, then each finished file with its identity.

    A file counts as finished when it is there, under its name in one of the folders, with the identity of its line.
    A line that was cut off by a crash is passed over, and so is a journal of another job: `is_new` tells.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self._finished: dict[str, FileIdentity] = {}
        self.kept: dict[str, object] = {}
        lines = _lines(path)
        self.is_new = not lines or lines[0] != {"job": job}
        if not self.is_new:
            for line in lines[1:]:
                if isinstance(line, dict) and {"name", "identity"} <= line.keys():
                    self._finished[str(line["name"])] = tuple(line["identity"])
                    self.kept[str(line["name"])] = line.get("kept")
        else:
            lines = [{"job": job}]
        self._lines = lines

    def begin(self) -> None:
        """Write what is known so far anew: a line after one that a crash cut off would be lost with it."""
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in self._lines).encode())

    @property
    def has_lines(self) -> bool:
        """Whether any file is finished."""
        return bool(self._finished)

    def add(self, name: str, path: Path, kept: object = None) -> None:
        """Note a file that is complete and flushed, and JSON data about it."""
        identity = file_identity(path)
        line = {"name": name, "identity": identity} | ({} if kept is None else {"kept": kept})
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._finished[name] = identity
        self.kept[name] = kept

    def holds(self, name: str, path: Path) -> bool:
        """Whether what lies at `path` is the finished file of this name."""
        with suppress(OSError):
            return name in self._finished and file_identity(path) == self._finished[name]
        return False


def _lines(path: Path) -> list[object]:
    found = []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
