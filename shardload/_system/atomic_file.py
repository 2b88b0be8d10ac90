"""Files that are whole or absent: written beside their place, flushed to the disk, then moved in."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shardload.errors import NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that whoever looks, even after a crash, finds the old content or the new one, whole.

    A temporary file beside it is flushed to the disk and renamed; then the folder is flushed. Raises NoSpaceError
    when the disk is full, OSError for what else keeps it from being written; the old file stays then.
    """
    target = Path(path)
    with no_space_said(target):
        require_space(target.parent, len(content))
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:200]}-", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(_usual_mode(target))
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: without it a rename may be lost in a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, nbytes: int) -> None:
    """Raise NoSpaceError when fewer than `nbytes` bytes are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise NoSpaceError(
            f"{nbytes:,} bytes are to be written and {free:,} are free",
            where=str(folder),
            cure="free some disk, or write to another one; nothing was written",
        )


@contextmanager
def no_space_said(where: str | os.PathLike[str]) -> Iterator[None]:
    """Raise NoSpaceError in place of the OSError of a disk, or a quota, that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise NoSpaceError(
            f"the disk became full: {os.strerror(error.errno or 0)}",
            where=str(where),
            cure="free some disk, or write to another one; no unfinished file is left in its place",
        ) from error


def _usual_mode(target: Path) -> int:
    """Return the permissions that `open` would give: those of the file that is replaced, or what the umask leaves."""
    try:
        return target.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
