"""Staging: a hidden folder inside the target, where files stand until all of them are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING

from shardload._system.atomic_file import sync_folder
from shardload.errors import NoSpaceError, ShardloadError, UsageError
from shardload.writing.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NAME = ".shardload-output"
_JOURNAL = ".journal"  # no file of a checkpoint is hidden
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index*.json", "*.bin.index*.json")


class Staging:
    """The folder of one output while it is written; made by `staging`."""

    def __init__(self, target: Path, job: str) -> None:
        self.target = target
        self.folder = target / NAME
        self.journal = Journal(self.folder / _JOURNAL, job)

    def clean(self) -> int:
        """Remove what a killed run, or one of another job, left half done; return the bytes. Begin the journal.

        In this order: what is removed may be what fills the disk.
        """
        removed = 0
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif name != _JOURNAL and not self.journal.holds(name, path):
                removed += path.stat().st_size
                path.unlink()
        self.journal.begin()
        return removed

    def is_finished(self, name: str) -> bool:
        """Whether the file of this name is complete, here or moved in."""
        return any(self.journal.holds(name, folder / name) for folder in (self.folder, self.target))

    def draft(self, name: str) -> Path:
        """Return where a file is written until it is complete."""
        path = self.folder / f"{name}.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, name: str, kept: object = None) -> None:
        """Give a complete, flushed draft its name, and note it with JSON data about it."""
        self.draft(name).replace(self.folder / name)
        sync_folder((self.folder / name).parent)
        self.journal.add(name, self.folder / name, kept)

    def refuse_others(self, names: Sequence[str]) -> None:
        """Raise UsageError for files in the target that would be replaced, or be read together with the new ones."""
        taken = [name for name in names if (self.target / name).exists()]
        others = [path.name for pattern in _WEIGHTS for path in self.target.glob(pattern)]
        wrong = [
            name
            for name in dict.fromkeys((*taken, *others))
            if not self.journal.holds(name, self.target / name)
        ]
        if wrong:
            raise UsageError(
                "the folder holds files that this output would replace, or weights beside its own",
                where=f"{self.target}: {', '.join(wrong[:8])}",
                cure="write into a new or an empty folder",
            )

    def move_in(self, names: Sequence[str]) -> None:
        """Move every finished file to its place, in this order; one that was moved by a killed run stays."""
        for name in names:
            place = self.target / name
            if not self.journal.holds(name, place):
                place.parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).replace(place)
                sync_folder(place.parent)


@contextlib.contextmanager
def staging(target: Path, job: str) -> Iterator[Staging]:
    """Open the staging folder of a target, alone; remove it when all is done, or when the output was refused.

    After any other end (a full disk, an interrupt, a kill) it stays, for the next call to go on from. Raises
    UsageError while another process writes into the same target.
    """
    made = _make(target)
    lock = _lock(target / NAME)
    keep = True
    try:
        stage = Staging(target, job)
        yield stage
        keep = False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            f"the disk became full: {os.strerror(error.errno)}",
            where=str(target),
            cure="free some disk and run it again: the files that are complete are kept",
        ) from error
    except ShardloadError as error:
        keep = isinstance(error, NoSpaceError) and stage.journal.has_lines
        raise
    finally:
        if not keep:
            shutil.rmtree(target / NAME, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only while it is empty
        os.close(lock)


def _make(target: Path) -> list[Path]:
    """Make the target; return the folders that were not there before, inner ones first."""
    made = []
    for folder in (target, *target.parents):
        if folder.exists():
            break
        made.append(folder)
    (target / NAME).mkdir(parents=True, exist_ok=True)
    return made


def _lock(folder: Path) -> int:
    """Lock a folder for this process; the kernel lets go of it when the process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        busy = os.fstat(descriptor).st_nlink == 0  # the other one was done in this moment, and removed it
    except ImportError:
        busy = False
    except OSError:
        busy = True
    if busy:
        os.close(descriptor)
        raise UsageError(
            "another process is writing into this folder",
            where=str(folder.parent),
            cure="wait for it, or write into another folder",
        )
    return descriptor
