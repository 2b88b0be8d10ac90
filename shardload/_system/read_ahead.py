"""Read-ahead: ask the kernel for a cold shard's pages before they are touched, where there is room for them.

1.9 GB in 7 cold shards, every weight touched, on two cores, the memory full of other files' pages: 1.0 to 2.1 s by
touching alone, 0.8 to 1.6 s with one thread that asks, 0.9 to 1.1 s with two; plain reads of the same files by two
threads 1.0 to 1.4 s.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from shardload._system.file_mapping import Buffer

_SAMPLES = 16
# The kernel reads no more for one request than its device's largest, which may be this small.
_STEP = 512 * 2**10
_THREADS = (
    2  # one is as quick where memory lies free, and half as quick where the kernel has to find some first
)
_SHARE = 0.5  # of the memory that is free: the model's own work needs some too


class ReadAhead:
    """Asks for the files of one load, on two threads. Files that are in the page cache, or too large for it, are left.

    Use it as a `with` block. The threads may outlive the block: what is still to be read is wanted by then.
    """

    def __init__(self, room: int | None = None) -> None:
        self._room = room
        self._files: SimpleQueue[tuple[int, range] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def begin(self, descriptor: int, mapping: Buffer) -> bool:
        """Ask for a whole mapped file, and return whether it was asked for."""
        size = len(mapping)
        if not hasattr(os, "posix_fadvise") or not is_cold(mapping):
            return False
        if self._room is None:
            self._room = int(free_memory() * _SHARE)
        if size > self._room:
            return False
        self._room -= size
        while len(self._threads) < _THREADS:
            asking = threading.Thread(target=self._ask, name="shardload-read-ahead", daemon=True)
            self._threads.append(asking)
            asking.start()
        for turn in range(_THREADS):
            self._files.put((os.dup(descriptor), range(turn * _STEP, size, _THREADS * _STEP)))
        return True

    def _ask(self) -> None:
        while (entry := self._files.get()) is not None:
            descriptor, starts = entry
            try:
                for start in starts:
                    os.posix_fadvise(descriptor, start, _STEP, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        for _thread in self._threads:
            self._files.put(None)


def is_cold(mapping: Buffer) -> bool:
    """Whether most of a mapped file is outside the page cache, judged by 16 of its pages by mincore(2).

    False where that can't be told: the kernel says so of files that are not the user's own, too.
    """
    mincore = _mincore()
    if mincore is None:
        return False
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    resident = ctypes.c_ubyte()
    absent = 0
    for sample in range(_SAMPLES):
        page = len(mapping) * sample // _SAMPLES // mmap.PAGESIZE * mmap.PAGESIZE
        if mincore(ctypes.c_void_p(start + page), ctypes.c_size_t(1), ctypes.byref(resident)) != 0:
            return False
        absent += not resident.value & 1
    return absent > _SAMPLES // 2


@lru_cache(maxsize=1)
def _mincore() -> Callable[..., int] | None:
    # A read with RWF_NOWAIT would tell as well, but it makes the kernel read.
    if sys.platform != "linux":
        return None
    found: Callable[..., int] = ctypes.CDLL(None).mincore
    return found


def free_memory() -> int:
    """Return the bytes that this process may still take: of the machine's, and of each memory cgroup around it."""
    return min([_available(), *_cgroup_rooms()])


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def _cgroup_rooms() -> list[int]:
    """Return limit minus use of this process's memory cgroup and of those above it, in versions 1 and 2."""
    try:
        entries = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    rooms = []
    for _, controllers, path in entries:
        if "memory" in controllers.split(","):
            rooms += _rooms("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
        elif controllers == "":
            for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                rooms += _rooms(root, path, "memory.max", "memory.current")
    return rooms


def _rooms(root: str, path: str, limit: str, use: str) -> list[int]:
    rooms = []
    folder = Path(root, path.lstrip("/"))
    while folder.is_relative_to(root):
        try:
            allowed, used = (folder / limit).read_text().strip(), (folder / use).read_text().strip()
        except OSError:
            pass  # the root has no limit, and a container may not show what is above it
        else:
            if allowed != "max":
                rooms.append(max(0, int(allowed) - int(used)))
        folder = folder.parent
    return rooms
