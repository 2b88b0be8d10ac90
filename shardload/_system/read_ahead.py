"""Asks the kernel to read shards into the page cache before their pages are touched, when there is room for them.

Measured with 1.9 GB in 7 cold shards on two cores, every weight touched, the memory full of the pages of other files:
1.0 to 2.1 s without read-ahead, 0.8 to 1.6 s with one thread that asks, 0.9 to 1.1 s with two. Two threads that read
the same files with plain reads take 1.0 to 1.4 s.
"""

from __future__ import annotations

import _thread
import ctypes
import mmap
import os
import sys
import weakref
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from shardload._system.file_mapping import map_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

    from shardload._system.file_mapping import Buffer

Spans = list[tuple[int, int]]
"""Parts of a file, from start to stop, in order."""

_SAMPLES = 16
_PATIENCE = 0.5  # seconds between two looks at whether anybody still needs the threads
# bytes per request where the device does not say what it takes: the kernel cuts a request that is larger than that.
_STEP = 512 * 2**10
_PIECE = 2**25  # bytes of a file that one thread looks at, and asks for at once
# One thread is as fast when memory is free, and half as fast when the kernel has to free memory first.
_THREADS = 2
_SHARE = 0.5  # of the free memory: the model's own work needs some too


class ReadAhead:
    """Asks the kernel for the files of one load, on two threads; skips what is cached, and files that are too large.

    `room` is the number of bytes to ask for at most; None means half of the free memory. Use the object as a `with`
    block. The threads may run on after the block: the model's own work will touch the remaining pages. After an error,
    and with `only_inside`, they ask for nothing more.
    """

    def __init__(self, room: int | None = None, *, only_inside: bool = False) -> None:
        self._room = room
        self._only_inside = only_inside
        self._pieces: SimpleQueue[tuple[Path, Spans] | None] = SimpleQueue()
        self._threads = 0

    def begin(self, path: Path, spans: Sequence[tuple[int, int]]) -> bool:
        """Ask the kernel to read these spans of a file; return False when there is no room for them."""
        size = sum(stop - start for start, stop in spans)
        if not hasattr(os, "posix_fadvise"):
            return False
        if self._room is None:
            self._room = int(free_memory() * _SHARE)
        if size > self._room:
            return False
        self._room -= size
        for piece in _pieces(spans):
            self._pieces.put((path, piece))
        while self._threads < _THREADS:
            # The threads do not hold this object, and end with it: Ctrl-C may come before the `with` block ends.
            self._threads += 1
            _thread.start_new_thread(_ask, (self._pieces, weakref.ref(self)))
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_details: object) -> None:
        if kind is not None or self._only_inside:
            with suppress(Empty):
                while True:
                    self._pieces.get_nowait()
        for _ in range(self._threads):
            self._pieces.put(None)


def _pieces(spans: Sequence[tuple[int, int]]) -> Iterator[Spans]:
    """Yield spans by the piece; one that is longer than a piece is cut."""
    piece: Spans = []
    nbytes = 0
    for start, stop in spans:
        for at in range(start, stop, _PIECE):
            piece.append((at, min(at + _PIECE, stop)))
            nbytes += piece[-1][1] - at
            if nbytes >= _PIECE:
                yield piece
                piece, nbytes = [], 0
    if piece:
        yield piece


def _ask(pieces: SimpleQueue[tuple[Path, Spans] | None], owner: weakref.ref[ReadAhead]) -> None:
    while True:
        try:
            entry = pieces.get(timeout=_PATIENCE)
        except Empty:
            if owner() is None:
                return
            continue
        if entry is None:
            return
        path, spans = entry
        # A file that is gone, or shorter now, is the load's to complain about.
        with suppress(OSError, ValueError), path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            step = _largest_request(status.st_dev)
            places = [at for span in spans for at in range(*span, _STEP)]
            if is_cold(map_file(file.fileno(), status.st_size), places):
                for start, stop in spans:
                    for at in range(start, stop, step):
                        os.posix_fadvise(file.fileno(), at, min(step, stop - at), os.POSIX_FADV_WILLNEED)


@lru_cache(maxsize=16)
def _largest_request(device: int) -> int:
    """Return the bytes that the kernel reads ahead for one request.

    Few large requests leave the interpreter to the threads that build the model: each one takes its lock again.
    """
    name = f"{os.major(device)}:{os.minor(device)}"
    places = (
        f"class/bdi/{name}/read_ahead_kb",
        *(f"dev/block/{name}/{up}queue/max_sectors_kb" for up in ("", "../")),
    )
    sizes = [_STEP]
    for place in places:
        with suppress(OSError, ValueError):
            sizes.append(int(Path("/sys", place).read_text()) * 1024)
    return max(sizes)


def is_cold(mapping: Buffer, places: Sequence[int] | None = None) -> bool:
    """Whether one of at most 16 pages of a mapped file is outside the page cache, as mincore(2) tells.

    `places` are bytes in some of these pages; without them the pages lie evenly over the file. False when mincore can't
    tell: for a file of another user the kernel reports every page as resident.
    """
    mincore = _mincore()
    if mincore is None:
        return False
    places = range(0, len(mapping), mmap.PAGESIZE) if places is None else places
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    resident = ctypes.c_ubyte()
    for place in places[:: -(-len(places) // _SAMPLES) or 1]:
        page = start + place // mmap.PAGESIZE * mmap.PAGESIZE
        if mincore(ctypes.c_void_p(page), ctypes.c_size_t(1), ctypes.byref(resident)) != 0:
            return False
        if not resident.value & 1:
            return True
    return False


@lru_cache(maxsize=1)
def _mincore() -> Callable[..., int] | None:
    # preadv2 with RWF_NOWAIT would tell as well, but the call makes the kernel start reading.
    if sys.platform != "linux":
        return None
    # The call takes a microsecond: PyDLL keeps the interpreter's lock, which takes longer to get back.
    found: Callable[..., int] = ctypes.PyDLL(None).mincore
    return found


def free_memory() -> int:
    """Return the bytes that this process may still take: the machine and every memory cgroup around it allow them."""
    return min([_available(), *_cgroup_rooms()])


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def _cgroup_rooms() -> list[int]:
    """Return limit minus use of this process's memory cgroup and of each cgroup above it, in versions 1 and 2."""
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
            pass  # the root cgroup has no limit, and a container may hide the cgroups above it
        else:
            if allowed != "max":
                rooms.append(max(0, int(allowed) - int(used)))
        folder = folder.parent
    return rooms
