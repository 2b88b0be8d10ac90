"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
import select
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload._system.file_errors import write_errors_said
from shardload.errors import NoSpaceError, UnsafeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWNER: Any = getattr(select, "epoll", None) or getattr(select, "kqueue", None)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that any reader, even after a crash, finds the old content or the new one, whole.

    A temporary file beside it is flushed to the disk and renamed; then the folder is flushed. The file keeps the
    permissions of the one that it replaces; a new file gets 0666 under the umask. Raises UnsafeError for a link,
    NoSpaceError when the disk is full, UsageError where this user may not write and OSError for other failures; the old
    file stays then.
    """
    target = Path(path)
    if target.is_symlink():
        raise UnsafeError(
            f"{target.name} is a link, and nothing is written through it",
            where=f"{target.absolute()} -> {target.readlink()}",
            cure=f"name the file that it leads to, {target.resolve()}; or remove the link",
        )
    temporary = target.with_name(f".{target.name[:200]}-{secrets.token_hex(8)}")
    with write_errors_said(target.parent):
        require_space(target.parent, len(content))
        try:
            with temporary.open("xb") as file:  # "x" applies the umask and follows no link
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with suppress(OSError):
                temporary.chmod(target.stat().st_mode & 0o777)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Keep every other thread and process out of such a block for this folder, where the filesystem has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with write_errors_said(folder):
        descriptor = _opened(folder)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        del descriptor  # which unlocks it


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: without it a rename may be lost in a crash."""
    os.fsync(_opened(folder))


def _opened(folder: Path) -> Any:
    """Return a folder as an object of C that owns its descriptor, which is closed with the object.

    By functions of C alone, so that Ctrl-C at no moment leaves the descriptor open. A FileIO takes no folder; the
    objects of `select` own any descriptor, and nothing else is done with it here.
    """
    return next(map(_OWNER.fromfd, map(os.open, (folder,), (os.O_RDONLY,))))


def require_space(folder: Path, nbytes: int) -> None:
    """Raise NoSpaceError when the disk of `folder` has fewer than `nbytes` bytes free."""
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise NoSpaceError(
            f"{nbytes:,} bytes are to be written and {free:,} are free",
            where=str(folder),
            cure="free some disk, or write to another one; nothing was written",
        )
