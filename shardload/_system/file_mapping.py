"""Private, writable mappings of whole files that hold no file descriptor.

Python's own `mmap` keeps a duplicate of the descriptor as long as the mapping lives. A model keeps a mapping a
shard for its whole life, and the usual limit is 1,024 descriptors a process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from bisect import bisect_right
from pathlib import Path

Buffer = mmap.mmap | ctypes.Array[ctypes.c_char]
"""The memory of a mapping, writable; the file stays mapped as long as anything holds it."""

# Older Pythons do not name MAP_NORESERVE; the value is Linux's.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_FAILED = ctypes.c_void_p(-1).value


def map_file(descriptor: int, size: int) -> Buffer:
    """Map the first `size` bytes of an open file copy-on-write: what is written to them never reaches the file.

    MAP_NORESERVE keeps a file larger than RAM mappable: without it the kernel counts a writable private mapping
    as memory that may be needed in full. Raises OSError or ValueError where the file can't be mapped.
    """
    return _map(descriptor, 0, size, mmap.MAP_PRIVATE | _NORESERVE, mmap.ACCESS_COPY)


def map_shared(descriptor: int, start: int, size: int) -> Buffer:
    """Map a stretch of an open file, from a page's start: what is written goes to the file, when the kernel likes."""
    return _map(descriptor, start, size, mmap.MAP_SHARED, mmap.ACCESS_WRITE)


def private_memory(size: int) -> Buffer:
    """Return anonymous memory of its own, which goes back to the kernel as soon as nothing holds it.

    What malloc hands out may stay with the process when it is freed: with blocks of up to 32 MB glibc keeps a heap
    that only shrinks at its end.
    """
    try:
        return _map(-1, 0, size, mmap.MAP_PRIVATE | getattr(mmap, "MAP_ANONYMOUS", 0), mmap.ACCESS_WRITE)
    except OSError as error:
        raise MemoryError(f"{size:,} bytes of memory are not to be had") from error


def _map(descriptor: int, start: int, size: int, flags: int, access: int) -> Buffer:
    libc = _libc()
    if libc is None:
        return mmap.mmap(descriptor, size, access=access, offset=start)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, size, protection, flags, descriptor, start)
    if address in (None, _FAILED):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    buffer = (ctypes.c_char * size).from_address(address)
    # Not at the process's exit: the kernel unmaps then, and until the last instruction a tensor may be in use.
    weakref.finalize(buffer, libc.munmap, address, size).atexit = False
    return buffer


def forget_pages(buffer: Buffer, start: int, stop: int) -> None:
    """Let go of the pages that lie wholly between two offsets; they are read from the file again if wanted.

    What was written to them is lost.
    """
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = stop // mmap.PAGESIZE * mmap.PAGESIZE - first
    libc = _libc()
    if length > 0 and libc is not None and not isinstance(buffer, mmap.mmap):
        libc.madvise(ctypes.addressof(buffer) + first, length, mmap.MADV_DONTNEED)


def advise(address: int, length: int, advice: int) -> bool:
    """Tell the kernel something about whole pages of memory (madvise(2)); False where it does not know it."""
    libc = _libc()
    return libc is not None and libc.madvise(address, length, advice) == 0


class PrivateMappings:
    """What this process has mapped privately from files, as /proc/self/maps (proc(5)) says it now; empty elsewhere."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, int, int]] = []
        try:
            lines = Path("/proc/self/maps").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            span, mode, offset, _, inode, *_ = line.split()
            if inode != "0" and mode.endswith("p"):
                start, stop = (int(bound, 16) for bound in span.split("-"))
                self._spans.append((start, stop, int(inode), int(offset, 16)))

    def place_of(self, address: int) -> tuple[int, int] | None:
        """Return the inode and the offset in its file that an address stands for; None for other memory."""
        at = bisect_right(self._spans, address, key=lambda span: span[0]) - 1
        if at < 0 or address >= self._spans[at][1]:
            return None
        start, _, inode, offset = self._spans[at]
        return inode, offset + address - start


_loaded: list[ctypes.CDLL] = []


def _libc() -> ctypes.CDLL | None:
    """Return the C library, its functions typed; None on a system that makes mappings in another way."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    if not _loaded:
        libc = ctypes.CDLL(None, use_errno=True)
        number, size, address = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
        libc.mmap.argtypes = (address, size, number, number, number, ctypes.c_long)
        libc.mmap.restype = address
        libc.munmap.argtypes = (address, size)
        libc.madvise.argtypes = (address, size, number)
        _loaded.append(libc)
    return _loaded[0]
