"""Exchange: moves finished files to their places and the files that they replace out of the way."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shardload._system.atomic_file import sync_folder
from shardload.checkpoint.sources.names import check_name
from shardload.errors import UnsafeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardload.writing.journal import Journal

_REPLACED = ".replaced"  # no file of a checkpoint is hidden


class Exchange:
    """Moves finished files from the folder `staging` into `target`.

    The last name is the key: an index or the only weight file. Without it nothing takes the folder for a checkpoint.
    The old key leaves first and the new key comes last, so that no reader finds a mixture. The names are in the journal
    before the first step, so that the next writer can complete a killed exchange. A single file is replaced by one
    rename.
    """

    def __init__(self, staging: Path, target: Path, journal: Journal) -> None:
        self._staging = staging
        self._target = target
        self._journal = journal

    def run(self, names: Sequence[str], *, replaces: bool) -> None:
        """Exchange these files in this order. After an error every file is where it was."""
        self._journal.move(names, replaces=replaces)
        try:
            self._forward(names)
        except BaseException:
            if len(names) > 1:
                self._back(names)
            self._journal.moving = []
            raise
        self._journal.moving = []

    def recover(self) -> None:
        """Complete a killed exchange, or undo it where finished files are missing or other files are in the way.

        While the old key is in its place nothing has left yet. Once the new key is there every file has come.
        """
        names = self._journal.moving
        if names and not os.path.lexists(self._target / names[-1]):
            complete = all(self._has_come(name) or self._is_staged(name) for name in names)
            if complete and (self._journal.replaces or not any(self._is_taken(name) for name in names)):
                self._forward(names)
            else:
                self._back(names)
        self._journal.moving = []

    def _forward(self, names: Sequence[str]) -> None:
        for name in reversed(names) if len(names) > 1 else ():
            if self._is_taken(name):
                self._move(self._target, name, self._staging, f"{_REPLACED}/{name}")
        for name in names:
            if not self._has_come(name):
                self._move(self._staging, name, self._target, name)

    def _back(self, names: Sequence[str]) -> None:
        for name in reversed(names):
            if self._has_come(name):
                self._move(self._target, name, self._staging, name)
        for name in names:
            old = f"{_REPLACED}/{name}"
            if os.path.lexists(self._staging / old) and not os.path.lexists(self._target / name):
                self._move(self._staging, old, self._target, name)

    def _has_come(self, name: str) -> bool:
        return self._journal.holds(name, self._target / name)

    def _is_staged(self, name: str) -> bool:
        return self._journal.holds(name, self._staging / name)

    def _is_taken(self, name: str) -> bool:
        return os.path.lexists(self._target / name) and not self._has_come(name)

    @staticmethod
    def _move(source: Path, old: str, target: Path, new: str) -> None:
        place = inside(target, new)
        place.parent.mkdir(parents=True, exist_ok=True)
        inside(source, old).replace(place)
        sync_folder(place.parent)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a name below a folder. Raises UnsafeError for names and links that lead out of it."""
    check_name(name, str(folder))
    path = folder / name
    for parent in path.parents:
        if parent == folder:
            break
        if parent.is_symlink():
            raise UnsafeError(
                f"{parent.name} in the output folder is a link, and nothing is written through it",
                where=str(parent),
                cure="remove the link, or write into another folder",
            )
    return path
