"""Tells whether a file is the same as when it was read before."""

from __future__ import annotations

import os

FileIdentity = tuple[int, int, int]
"""Inode, size in bytes, and time of the last change in nanoseconds."""


def file_identity(file: int | str | os.PathLike[str]) -> FileIdentity:
    """Return the identity of a file, given as a path or as an open descriptor."""
    status = os.stat(file)  # noqa: PTH116 - a Path can't be an open descriptor
    return status.st_ino, status.st_size, status.st_mtime_ns
