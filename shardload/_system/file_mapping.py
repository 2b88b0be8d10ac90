"""Private, writable mappings of whole files that hold no file descriptor.

Python's own `mmap` keeps a duplicate of the descriptor as long as the mapping lives. A model keeps one mapping per
shard for its whole life, and the usual limit is 1,024 descriptors per process.
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
"""The writable memory of a mapping. The file stays mapped as long as a reference to the buffer exists."""

# Older Pythons do not name MAP_NORESERVE; the value is Linux's.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_FAILED = ctypes.c_void_p(-1).value


def map_file(descriptor: int, size: int) -> Buffer:
    """Map the first `size` bytes of an open file copy-on-write: writes never reach the file.

    MAP_NORESERVE lets a file larger than RAM be mapped: without this flag the kernel counts a writable private mapping
    as memory that may be needed in full. Raises OSError or ValueError when the file can't be mapped.
    """
    return _map(descriptor, 0, size, mmap.MAP_PRIVATE | _NORESERVE, mmap.ACCESS_COPY)


def map_shared(descriptor: int, start: int, size: int) -> Buffer:
    """Map `size` bytes of an open file from `start`, the start of a page; the kernel writes changes back later."""
    return _map(descriptor, start, size, mmap.MAP_SHARED, mmap.ACCESS_WRITE)


def private_memory(size: int) -> Buffer:
    """Return anonymous memory that goes back to the kernel as soon as the last reference to the buffer is gone.

    Memory from malloc may stay with the process after it is freed: for blocks of up to 32 MB glibc keeps a heap that
    only shrinks at its end. Raises MemoryError.
    """
    try:
        return _map(-1, 0, size, mmap.MAP_PRIVATE | getattr(mmap, "MAP_ANONYMOUS", 0), mmap.ACCESS_WRITE)
    except OSError as error:
        raise MemoryError(f"{size:,} bytes of memory are not available") from error


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
    # Not at the exit of the process: a tensor may be in use until then, and the kernel unmaps the file itself.
    weakref.finalize(buffer, libc.munmap, address, size).atexit = False
    return buffer


def forget_pages(buffer: Buffer, start: int, stop: int) -> None:
    """Release the pages that lie wholly between two offsets; the next access reads them from the file again.

    Changes that were written to these pages are lost.
    """
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = stop // mmap.PAGESIZE * mmap.PAGESIZE - first
    libc = _libc()
    if length > 0 and libc is not None and not isinstance(buffer, mmap.mmap):
        libc.madvise(ctypes.addressof(buffer) + first, length, mmap.MADV_DONTNEED)


def advise(address: int, length: int, advice: int) -> bool:
    """Give the kernel advice about whole pages of memory (madvise(2)); return False when it rejects the advice."""
    libc = _libc()
    return libc is not None and libc.madvise(address, length, advice) == 0


class PrivateMappings:
    """The private file mappings of this process, read once from /proc/self/maps (proc(5)); empty on other systems."""

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
        """Return the inode of the file that is mapped at an address and the offset in it; None for other memory."""
        at = bisect_right(self._spans, address, key=lambda span: span[0]) - 1
        if at < 0 or address >= self._spans[at][1]:
            return None
        start, _, inode, offset = self._spans[at]
        return inode, offset + address - start


_loaded: list[ctypes.CDLL] = []


def _libc() -> ctypes.CDLL | None:
    """Return the C library with its functions typed, or None on a system without madvise."""
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
