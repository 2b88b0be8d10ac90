"""File errors: what the system says about a file that can't be read or written, as a typed error with a cure."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shardload.errors import AccessError, NoSpaceError, NotFoundError, ShardloadError, UsageError

try:
    import resource  # here: where no descriptor is left nothing can be imported
except ImportError:
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
_DENIED = {errno.EACCES, errno.EPERM}
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL = "free some disk, or write to another one; no unfinished file is left in its place"
_NO_WRITING = {*_DENIED, *_ABSENT, errno.EROFS, errno.EISDIR, errno.EEXIST}


def is_absent(error: OSError) -> bool:
    """Whether the system says that nothing is there; anything else is there, and can't be reached."""
    return error.errno in _ABSENT


def unreadable(path: str | os.PathLike[str], error: OSError) -> NotFoundError:
    """Return the error for a file or folder that can't be read: it is called missing only where nothing is there."""
    name = Path(path).name or str(path)
    if error.errno in _DENIED:
        return AccessError(
            f"{name!r} may not be read by this user",
            where=str(path),
            cure="give this user permission to read it and to enter the folders above it",
        )
    if error.errno in _NO_DESCRIPTOR:
        return no_descriptor(path, error)
    if error.errno == errno.EISDIR:
        return NotFoundError(f"{name!r} is a folder, not a file", where=str(path))
    if is_absent(error):
        return NotFoundError(f"the file {name!r} can't be opened: {error.strerror or error}", where=str(path))
    return AccessError(
        f"{name!r} is there and can't be read: {error.strerror or error}",
        where=str(path),
        cure="check the disk, or the connection to it, and try again",
        code="E-IO",
    )


def no_descriptor(path: str | os.PathLike[str], error: OSError) -> AccessError:
    """Return the error for a file that can't be opened because too many files and sockets are open."""
    return AccessError(
        f"{Path(path).name!r} can't be opened: {_limit_said(error)}",
        where=str(path),
        cure="close files and sockets that the program no longer needs, or raise the limit (`ulimit -n 4096`)",
        code="E-DESCRIPTORS",
    )


def unwritable(folder: Path, error: OSError, full: str | None = None) -> ShardloadError | None:
    """Return the error for a folder that can't be written into, or None where the error is about something else.

    `full` is what to do when the disk is full.
    """
    named = error.filename
    if isinstance(named, (str, bytes)):
        path = Path(os.fsdecode(named))
        if not path.is_relative_to(folder) and path not in folder.parents:
            return None
    if error.errno in _NO_ROOM:
        big = error.errno == errno.EFBIG
        return NoSpaceError(
            f"{'the file' if big else 'the disk'} became {'too large' if big else 'full'}: {error.strerror}",
            where=str(folder),
            cure="write smaller shards, or raise `ulimit -f`" if big else full or _FULL,
        )
    if error.errno in _NO_DESCRIPTOR:
        return no_descriptor(named or folder, error)
    if error.errno in _NO_WRITING:
        return UsageError(
            f"the folder can't be written into: {error.strerror or error}",
            where=str(named or folder),
            cure="pass a new folder, in a place where this user may write",
        )
    return None


@contextmanager
def write_errors_said(folder: Path, full: str | None = None) -> Iterator[None]:
    """Raise typed errors for what the system answers where a folder is full, read-only or forbidden."""
    try:
        yield
    except OSError as error:
        typed = unwritable(folder, error, full)
        if typed is None:
            raise
        raise typed from error


def _limit_said(error: OSError) -> str:
    if error.errno == errno.ENFILE:
        return "the system has no file descriptor left"
    limit = f" ({resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} are allowed)" if resource else ""
    return f"this process has no file descriptor left{limit}"
