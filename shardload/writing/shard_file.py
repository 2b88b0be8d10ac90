"""Writes one safetensors file by its layout and reads it back."""

from __future__ import annotations

import ctypes
import io
import os
import zlib
from contextlib import ExitStack
from typing import TYPE_CHECKING

from shardload._system.file_errors import unreadable
from shardload._system.file_identity import FileIdentity, file_identity
from shardload.errors import CorruptError
from shardload.writing.kernel_copy import copy_range, write_all
from shardload.writing.output import FileRange

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from shardload._system.progress import ProgressMeter
    from shardload.writing.layout import Layout
    from shardload.writing.output import Blocks, OutputTensor

_PIECE = 1 << 22

Sums = dict[str, int]
"""The CRC-32 of each tensor that was computed. Copied tensors are compared with their source instead."""


def write_shard(path: Path, layout: Layout, meter: ProgressMeter, *, summed: bool = True) -> Sums:
    """Create a file, write it from front to back and flush it to the disk; return the sums of the computed tensors.

    `summed=False` spares the sums. Raises CorruptError where a source file has changed since its header was read, or
    where the blocks of a tensor have more or fewer bytes than the tensor.
    """
    sums: Sums = {}
    with ExitStack() as stack:
        target = stack.enter_context(path.open("xb", buffering=0)).fileno()
        sources = _Sources(stack)
        write_all(target, memoryview(layout.header), 0)
        for tensor, place in layout.places:
            if isinstance(tensor.content, FileRange):
                source = sources.open(tensor.content)
                copy_range(source, tensor.content.start, target, place, tensor.nbytes)
            else:
                sums[tensor.name] = _write_blocks(target, tensor, tensor.content, place, summed=summed)
            meter.tensor(tensor.nbytes)
        sources.check()
        os.fsync(target)
    return sums


def verify_shard(path: Path, layout: Layout, sums: Sums) -> None:
    """Read a file back from the disk and compare it with what was written. Raises CorruptError."""
    wrong = differences(path, layout, sums)
    if wrong:
        raise CorruptError(
            f"{path.name} was read back and differs from what was written in {len(wrong)} places",
            where=f"{path}: {', '.join(wrong[:8])}",
            cure="check the disk",
        )


def differences(path: Path, layout: Layout, sums: Sums | None = None) -> list[str]:
    """Return what differs between a file and what `write_shard` writes; without sums all blocks are compared."""
    wrong: list[str] = []
    with ExitStack() as stack:
        written = stack.enter_context(path.open("rb", buffering=0)).fileno()
        _drop_cache(written)
        sources = _Sources(stack)
        size = os.fstat(written).st_size
        if size != layout.size or os.pread(written, len(layout.header), 0) != layout.header:
            wrong.append(f"the header or the size ({size:,} bytes for {layout.size:,})")
        for tensor, place in layout.places:
            if isinstance(tensor.content, FileRange):
                source = sources.open(tensor.content)
                good = _equal(written, place, source, tensor.content.start, tensor.nbytes)
            elif sums is None:
                good = _equal_blocks(written, place, tensor.content)
            else:
                good = _sum(written, place, tensor.nbytes) == sums[tensor.name]
            if not good:
                wrong.append(tensor.name)
    return wrong


def verify_copy(path: Path, source: Path) -> None:
    """Compare a copied file with its source, from the disk. Raises CorruptError."""
    with path.open("rb", buffering=0) as copy, source.open("rb", buffering=0) as original:
        size = os.fstat(copy.fileno()).st_size
        _drop_cache(copy.fileno())
        if size != os.fstat(original.fileno()).st_size or not _equal(
            copy.fileno(), 0, original.fileno(), 0, size
        ):
            raise CorruptError(
                f"{path.name} was copied and differs from its source {source}", cure="check the disk"
            )


def _drop_cache(descriptor: int) -> None:
    """Drop a flushed file's pages: the cache would return what the kernel was given, not what the disk holds."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor. The tensor has to outlive the view."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(
            f"the tensor has to be contiguous and on the CPU, not {tensor.stride()} on {tensor.device}"
        )
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")


class _Sources:
    """The files that are copied from, one open at a time: a checkpoint may have hundreds."""

    def __init__(self, stack: ExitStack) -> None:
        self._found: dict[Path, FileIdentity] = {}
        self._path: Path | None = None
        self._file: io.FileIO | None = None
        stack.callback(self.close)

    def open(self, content: FileRange) -> int:
        if self._file is None or self._path != content.path:
            self.close()
            try:
                self._file, self._path = io.FileIO(content.path), content.path
            except OSError as error:
                raise unreadable(content.path, error) from error
            opened = file_identity(self._file.fileno())
            if self._found.setdefault(content.path, content.expected or opened) != opened:
                raise _changed(content.path)
        return self._file.fileno()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def check(self) -> None:
        for path, found in self._found.items():
            try:
                now = file_identity(path)
            except OSError as error:
                raise unreadable(path, error) from error
            if now != found:
                raise _changed(path)


def _changed(path: Path) -> CorruptError:
    return CorruptError(
        f"{path.name} was changed while it was copied",
        where=str(path),
        cure="run it again when no program writes to that file",
    )


def _write_blocks(target: int, tensor: OutputTensor, blocks: Blocks, place: int, *, summed: bool) -> int:
    total, done = 0, 0
    for block in blocks():
        piece = bytes_of(block)
        if done + len(piece) > tensor.nbytes:
            done += len(piece)
            break
        write_all(target, piece, place + done)
        total = zlib.crc32(piece, total) if summed else 0
        done += len(piece)
        del block, piece  # else two blocks would be in memory
    if done != tensor.nbytes:
        raise CorruptError(
            f"{tensor.name} has {tensor.nbytes:,} bytes, and its blocks {'at least ' if done > tensor.nbytes else ''}"
            f"{done:,}",
            where=tensor.name,
        )
    return total


def _sum(file: int, place: int, nbytes: int) -> int:
    total, done = 0, 0
    while done < nbytes:
        piece = os.pread(file, min(_PIECE, nbytes - done), place + done)
        if not piece:
            return -1
        total = zlib.crc32(piece, total)
        done += len(piece)
    return total


def _equal_blocks(file: int, place: int, blocks: Blocks) -> bool:
    for block in blocks():
        piece = bytes_of(block)
        for start in range(0, len(piece), _PIECE):
            part = bytes(piece[start : start + _PIECE])
            if os.pread(file, len(part), place) != part:
                return False
            place += len(part)
        del block, piece
    return True


def _equal(one: int, place: int, other: int, start: int, nbytes: int) -> bool:
    done = 0
    while done < nbytes:
        length = min(_PIECE, nbytes - done)
        piece = os.pread(one, length, place + done)
        if len(piece) != length or piece != os.pread(other, length, start + done):
            return False
        done += length
    return True
