"""Spill: makes tensors in a file, so that the kernel can write their pages to disk when memory runs short."""

from __future__ import annotations

import os
import shutil
import tempfile
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from shardload._system.file_errors import unwritable, write_errors_said
from shardload._system.file_mapping import map_shared
from shardload._system.process_memory import size_of
from shardload.errors import (
    Cures,
    NoSpaceError,
    NotFoundError,
    ShardloadError,
    UnsupportedError,
    Wording,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPARE = 64 * 2**20  # bytes of the disk that are left to other programs


class Spill:
    """Makes tensors in a nameless file in `folder`; its disk space is free again once the last tensor is gone.

    They are ordinary CPU tensors. Their pages are file-backed: when memory runs short, the kernel writes the pages to
    the file and drops them. A forked child process shares the tensors and gets no copies. Raises NotFoundError when
    the folder does not exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        with write_errors_said(self.folder):
            there = self.folder.is_dir()
        if not there:
            raise NotFoundError(
                f"{self.folder} is no folder to spill to", cure="make it, on a disk of this machine"
            )
        self._file: IO[bytes] | None = None
        self._used = 0

    def require(self, nbytes: int) -> None:
        """Raise NoSpaceError when the disk has less room than `nbytes`, before anything is written."""
        free = shutil.disk_usage(self.folder).free
        if nbytes + _SPARE > free:
            raise NoSpaceError(
                f"the load spills {size_of(nbytes)}, and the disk has {size_of(free)} free",
                where=str(self.folder),
                cure=Cures("free some", Wording("name a folder on a roomier disk: {spill}", spill=...)),
            )

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a new tensor in the file, with its disk space reserved. Raises NoSpaceError when the disk is full."""
        count = prod(shape)
        nbytes = count * dtype.itemsize
        if self._file is None:
            with write_errors_said(self.folder):
                self._file = tempfile.TemporaryFile(dir=self.folder, prefix="shardload-spill-")  # noqa: SIM115
        descriptor = self._file.fileno()
        start = self._used
        try:
            # Without reserved space, a write to a page would kill the process when the disk is full.
            os.posix_fallocate(descriptor, start, nbytes)
        except OSError as error:
            raise self._refused(error, nbytes) from error
        self._used += -(-nbytes // _PAGE) * _PAGE
        buffer = map_shared(descriptor, start, nbytes)
        return torch.frombuffer(buffer, dtype=dtype, count=count).view(tuple(shape))

    def _refused(self, error: OSError, nbytes: int) -> ShardloadError:
        typed = unwritable(self.folder, error)
        roomier = Wording("name a folder on a roomier disk: {spill}", spill=...)
        if isinstance(typed, NoSpaceError):
            what = f"the disk is full: a tensor of {size_of(nbytes)} can't be spilled"
            return NoSpaceError(what, where=str(self.folder), cure=Cures("free some", roomier))
        return typed or UnsupportedError(
            f"the filesystem can't reserve room for a tensor: {error.strerror}",
            where=str(self.folder),
            cure=Wording("name a folder on a disk of this machine: {spill}", spill=...),
        )

    def close(self) -> None:
        """Close the file; tensors in it stay valid."""
        if self._file is not None:
            self._file.close()
        self._file, self._used = None, 0


_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**16
