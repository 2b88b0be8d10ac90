"""Staging: a hidden folder inside the target, in which files stay until all of them are complete."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardload._system.file_errors import write_errors_said
from shardload.checkpoint.index import NOT_WEIGHTS
from shardload.checkpoint.sources.names import STAGING as NAME
from shardload.errors import NoSpaceError, ShardloadError, UnsafeError, UsageError
from shardload.writing.exchange import Exchange, inside
from shardload.writing.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardload.writing.output import Output

_JOURNAL = ".journal"  # no file of a checkpoint is hidden
_WEIGHTS = ("*.safetensors", "*.bin", "*.distcp", "*.safetensors.index*.json", "*.bin.index*.json")
_CONTINUED = "free some disk and run it again: the files that are complete are kept"
_ANEW = "free some disk, or write to another one; the old files are still there"
_ATTEMPTS = 100


class Staging:
    """The staging folder of one output; `staging` opens it and holds the lock.

    With `replaces` the output may replace files of the same names. `was_removed`: the folder was found without its
    journal, so an earlier output was killed in `remove`, after its last file, or before its first one.
    """

    def __init__(self, target: Path, journal: Journal, *, replaces: bool) -> None:
        self.target = target
        self.folder = target / NAME
        self.journal = journal
        self.replaces = replaces
        self.exchange = Exchange(self.folder, target, journal)
        self.was_removed = False

    def begin(self) -> int:
        """Remove the unfinished files of earlier runs, then begin the journal; return the bytes that were removed.

        The removal comes first because these files may be what fills the disk.
        """
        removed = self._sweep(self.journal.holds)
        self.journal.begin()
        return removed

    def is_finished(self, name: str) -> bool:
        """Whether the file of this name is finished: here or, where nothing is replaced, already moved in."""
        places = (self.folder,) if self.replaces else (self.folder, self.target)
        return any(self.journal.holds(name, place / name) for place in places)

    def draft(self, name: str) -> Path:
        """Return the path at which a file is to be created; nothing is there."""
        path = inside(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path

    def finish(self, name: str, kept: object = None) -> None:
        """Record that a draft is complete and flushed, with JSON data about it."""
        self.journal.add(name, self.folder / name, kept)

    def refuse_others(self, names: Sequence[str], *, alone: bool) -> None:
        """Raise UsageError for files of these names in the target that may not be replaced.

        For an output that is to be `alone`, other weights are refused too: a reader might take them.
        """
        places = [inside(self.target, name) for name in names]
        wrong = [
            (name, place)
            for name, place in zip(names, places, strict=True)
            if os.path.lexists(place) and not (self.replaces and (place.is_symlink() or not place.is_dir()))
        ]
        for pattern in _WEIGHTS if alone else ():
            wrong += [
                (path.name, path)
                for path in self.target.glob(pattern)
                if path not in places and not path.name.startswith(NOT_WEIGHTS)
            ]
        listed = [name for name, place in wrong if not self.journal.holds(name, place)]
        if listed:
            raise UsageError(
                "the folder holds weights that the new ones would not replace"
                if self.replaces
                else "the folder holds files that this output would replace, or weights beside its own",
                where=f"{self.target}: {', '.join(listed[:8])}",
                cure="write into a new or an empty folder"
                + (
                    "; if this very call wrote them, they are complete" if alone and not self.replaces else ""
                ),
            )

    def without_unchanged(self, output: Output) -> Output:
        """Return the output without the files beside the weights that the target already has, byte for byte.

        Raises UsageError for a code file with other content: a person may have edited it.
        """
        changed = {name: content for name, content in output.beside.items() if not self._has(name, content)}
        for name in changed:
            if name.endswith(".py") and os.path.lexists(self.target / name):
                raise UsageError(
                    "the folder holds code that differs from the model's own",
                    where=str(self.target / name),
                    cure="save into another folder, or remove the file first",
                )
        return replace(output, beside=changed)

    def move_in(self, names: Sequence[str]) -> None:
        """Move every finished file to its place, in this order; files that a killed run moved stay there."""
        self.exchange.run(names, replaces=self.replaces)

    def remove(self) -> None:
        """Remove the folder, its journal last, so that after a kill the next call knows that the output is complete."""
        with contextlib.suppress(OSError):
            self._sweep(lambda _name, _path: False)
            (self.folder / _JOURNAL).unlink()
            self.folder.rmdir()

    def _has(self, name: str, content: bytes | Path) -> bool:
        place = self.target / name
        if not isinstance(content, bytes) or place.is_symlink() or not place.is_file():
            return False
        return place.stat().st_size == len(content) and place.read_bytes() == content

    def _sweep(self, keep: Callable[[str, Path], bool]) -> int:
        """Remove everything except the journal and the files to keep; return the bytes. Links are not followed."""
        removed = 0
        for parent, folders, files in os.walk(self.folder, topdown=False):
            for path in (Path(parent, entry) for entry in (*files, *folders)):
                name = path.relative_to(self.folder).as_posix()
                if path.is_dir() and not path.is_symlink():
                    with contextlib.suppress(OSError):
                        path.rmdir()  # fails where it holds a file that is kept
                elif name != _JOURNAL and not keep(name, path):
                    removed += path.lstat().st_size
                    path.unlink()
        return removed


@contextlib.contextmanager
def staging(target: Path, job: str, *, replaces: bool = False) -> Iterator[Staging]:
    """Lock and open the staging folder of a target; remove it when the output is complete or was refused.

    After a full disk, an interrupt or a kill it stays, and the next call continues from it. With `replaces` it stays
    only after a kill. Raises UsageError while another writer holds the lock, UnsafeError where the folder is a link.
    """
    made: list[Path] = []
    keep = False
    stage = None
    journal: io.FileIO | None = None
    try:
        with write_errors_said(target, _ANEW if replaces else _CONTINUED):
            left = (target / NAME).is_dir()
            made = [folder for folder in (target, *target.parents) if not folder.exists()]
            journal = _locked_journal(target)
            stage = Staging(target, Journal(journal.fileno()), replaces=replaces)
            stage.was_removed = left and stage.journal.is_new
            stage.exchange.recover()
            stage.journal.choose(job)
            yield stage
    except ShardloadError as error:
        keep = isinstance(error, NoSpaceError) and not replaces
        raise
    except BaseException:
        keep = not replaces
        raise
    finally:
        if stage is not None and not stage.journal.moving and not (keep and stage.journal.has_finished):
            stage.remove()
        if journal is not None:
            _unlock(journal)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only while it is empty


def _locked_journal(target: Path) -> io.FileIO:
    """Make the staging folder, open its journal and lock it; the kernel unlocks it when the process ends."""
    folder = target / NAME
    path = folder / _JOURNAL
    gone: FileNotFoundError | None = None
    for _ in range(_ATTEMPTS):
        if folder.is_symlink():
            raise UnsafeError(
                f"{NAME} in the output folder is a link, and files would be removed behind it",
                where=str(folder),
                cure="remove the link, or write into another folder",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # By functions of C alone, until an object owns the descriptor: Ctrl-C leaves no descriptor and no lock.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            journal = next(map(io.FileIO, map(os.open, (path,), (flags,), (0o666,)), ("rb+",)))
        except FileNotFoundError as error:
            gone = error
            continue  # another writer has just ended and removed the folder
        except OSError as error:
            if error.errno == errno.EEXIST and not _in_the_way(error.filename):
                continue  # mkdir saw the folder of another writer, which was gone when it looked again
            raise
        gone = None
        if not _lock(journal.fileno()):
            journal.close()
            break
        opened = os.fstat(journal.fileno())
        if stat.S_ISREG(opened.st_mode) and _is_there(path, opened):
            return journal
        journal.close()  # another writer has just ended and removed the journal
    if gone is not None:
        raise gone  # every time: a place such as /proc, where nothing can be made
    raise UsageError(
        "another writer is at work in this folder",
        where=str(target),
        cure="wait for it, or write into another folder",
    )


def _in_the_way(path: str) -> bool:
    """Whether something other than a folder has this name."""
    try:
        return not stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _is_there(path: Path, opened: os.stat_result) -> bool:
    try:
        return os.path.samestat(opened, path.lstat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Lock an open file; return False while another writer holds the lock, True on filesystems without locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK
    return True


def _unlock(journal: io.FileIO) -> None:
    # Closing is not enough: a process that was forked meanwhile has the descriptor too.
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(journal.fileno(), fcntl.LOCK_UN)
    journal.close()
