"""Spill: memory that the kernel can write to disk and take back, for results that are larger than the memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shardload._system.file_mapping import map_shared
from shardload._system.process_memory import size_of
from shardload.errors import Cures, NoSpaceError, NotFoundError, Wording

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPARE = 64 * 2**20  # bytes that are left to others on the disk


class Spill:
    """Makes tensors in a file without a name in `folder`; the disk is free again once the last of them is gone.

    They are ordinary CPU tensors. Their pages are file-backed: under pressure the kernel writes them to the file and
    drops them. A child that was forked shares them, and does not get copies. Raises NotFoundError for a folder that
    is not there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise NotFoundError(
                f"{self.folder} is no folder to spill to", cure="make it, on a disk of this machine"
            )
        self._descriptor = -1
        self._used = 0

    def require(self, nbytes: int) -> None:
        """Raise NoSpaceError when the disk has not that much room, before anything is written."""
        free = shutil.disk_usage(self.folder).free
        if nbytes + _SPARE > free:
            raise NoSpaceError(
                f"the load spills {size_of(nbytes)}, and the disk has {size_of(free)} free",
                where=str(self.folder),
                cure=Cures("free some", Wording("name a folder on a roomier disk: {spill}", spill=...)),
            )

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of its own stretch of the file, which the disk has set aside for it."""
        count = prod(shape)
        nbytes = count * dtype.itemsize
        if self._descriptor < 0:
            self._descriptor = _nameless(self.folder)
        start = self._used
        try:
            # A write to a page that finds the disk full would kill the process.
            os.posix_fallocate(self._descriptor, start, nbytes)
        except OSError as error:
            raise NoSpaceError(
                f"the disk is full: {size_of(nbytes)} more were to be spilled", where=str(self.folder)
            ) from error
        self._used += -(-nbytes // _PAGE) * _PAGE
        buffer = map_shared(self._descriptor, start, nbytes)
        return torch.frombuffer(buffer, dtype=dtype, count=count).view(tuple(shape))

    def close(self) -> None:
        """Let go of the file; tensors that were made stay whole."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._used = -1, 0


_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**16


def _nameless(folder: Path) -> int:
    with tempfile.TemporaryFile(dir=folder, prefix="shardload-spill-") as file:
        return os.dup(file.fileno())
