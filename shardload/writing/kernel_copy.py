"""Copies, clones or links bytes in the kernel, without bringing them into this process."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Literal

from shardload.errors import CorruptError

if TYPE_CHECKING:
    from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_PIECE = 1 << 22
# The kernel's answers where it can't do this between two files. Reading and writing works there.
_CANNOT = frozenset({
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK, errno.ENOTTY,
    errno.EACCES, errno.ETXTBSY,
})  # fmt: skip

LinkKind = Literal["cloned", "linked", "copied"]


def copy_range(source: int, start: int, target: int, place: int, nbytes: int) -> None:
    """Copy bytes between two open files by `copy_file_range`, or by reading and writing where the kernel can't.

    Raises CorruptError where the source ends too early.
    """
    done = 0
    by_kernel = hasattr(os, "copy_file_range")
    while done < nbytes:
        if by_kernel:
            try:
                moved = os.copy_file_range(source, target, nbytes - done, start + done, place + done)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                moved = 0
            # Some filesystems return 0 for what they can't do: only reading shows whether the file has ended.
            by_kernel = moved > 0
        else:
            piece = os.pread(source, min(_PIECE, nbytes - done), start + done)
            moved = len(piece)
            write_all(target, memoryview(piece), place + done)
            if moved == 0:
                raise CorruptError(
                    f"the file that is copied ends {nbytes - done:,} bytes too early",
                    cure="open the checkpoint again when no program writes to it",
                )
        done += moved


def write_all(target: int, piece: memoryview, place: int) -> None:
    """Write a whole buffer at an offset; a single `pwrite` may write only part of it."""
    done = 0
    while done < len(piece):
        done += os.pwrite(target, piece[done:], place + done)


def same_file(source: Path, target: Path, *, link: bool) -> LinkKind:
    """Create `target` with the bytes of `source`: as a clone, else as a hard link, else as a copy.

    A clone shares disk blocks until one of the two files changes. A hard link is the same file under a second name;
    `link=False` does not make one.
    """
    if _clone(source, target):
        return "cloned"
    if link:
        try:
            os.link(source.resolve(), target)
            return "linked"
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    with source.open("rb") as old, target.open("xb") as new:
        copy_range(old.fileno(), 0, new.fileno(), 0, os.fstat(old.fileno()).st_size)
    return "copied"


def _clone(source: Path, target: Path) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    with source.open("rb") as old, target.open("xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            return True
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    target.unlink()
    return False
