"""BlockReader: parts of a file that is far away; small reads share requests, large ones go straight into memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from shardload.checkpoint.sources.runs import Run, fetch_runs, runs_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardload.checkpoint.sources.runs import Part
    from shardload.errors import CorruptError

BLOCK = 64 * 1024
"""Bytes in the smallest request; smaller reads share it."""

MAX_AHEAD = 16
"""Blocks that one request fetches at most while a file is read from front to back."""

_MAX_CACHED = 128  # blocks: 8 MiB a file
_UNCACHED = 4 * 1024 * 1024  # a read this long is not kept


class BlockReader(ABC):
    """Reads parts of a file of `size` bytes, keeping the last few blocks in memory. Threads may share it.

    A subclass fetches a run of bytes, and names the file in errors.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks: dict[int, bytes] = {}
        self._next_block = -1
        self._in_a_row = 0

    @abstractmethod
    def _fetch(self, run: Run) -> None:
        """Fetch the bytes of a run, whatever it takes. Raises typed errors."""

    @abstractmethod
    def _corrupt(self, what: str) -> CorruptError:
        """Return the error for a server that did something else than it was asked."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at the end of the file."""
        if offset < 0 or length < 0:
            raise ValueError(f"offset and length must not be negative, got {offset} and {length}")
        stop = min(offset + length, self._size)
        if offset >= stop:
            return b""
        if stop - offset >= _UNCACHED:
            whole = bytearray(stop - offset)
            self.read_into(offset, memoryview(whole))
            return bytes(whole)
        first, last = offset // BLOCK, (stop - 1) // BLOCK
        blocks = self._gather(first, last)
        joined = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        return joined[offset - first * BLOCK : stop - first * BLOCK]

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fill memory with the bytes from `offset` on, by one request; they are not kept."""
        self._require_inside([(offset, memory)])
        self._fetch(Run([(offset, memory)]))

    def read_many(self, parts: Iterable[Part]) -> None:
        """Fill several parts; what lies near is fetched together, the rest on several connections."""
        parts = list(parts)
        self._require_inside(parts)
        fetch_runs(runs_of(parts), self._fetch)

    def _require_inside(self, parts: Iterable[Part]) -> None:
        if any(offset < 0 or offset + len(memory) > self._size for offset, memory in parts):
            raise self._corrupt(f"has {self._size:,} bytes, and more are wanted")

    def _gather(self, first: int, last: int) -> list[bytes]:
        """Return the blocks first..last, fetching those that are missing with one request a gap."""
        found = {index: self._blocks[index] for index in range(first, last + 1) if index in self._blocks}
        index = first
        while index <= last:
            if index in found:
                index += 1
                continue
            end = index
            while end + 1 <= last and end + 1 not in found:
                end += 1
            found.update(self._fetch_blocks(index, end))
            index = end + 1
        return [found[index] for index in range(first, last + 1)]

    def _fetch_blocks(self, first: int, last: int) -> dict[int, bytes]:
        # Two requests in a row read a header and its length; from the third on the file is read from front to back.
        self._in_a_row = self._in_a_row + 1 if first == self._next_block else 0
        last = max(last, first + min(2 ** max(0, self._in_a_row - 1), MAX_AHEAD) - 1)
        start, stop = first * BLOCK, min((last + 1) * BLOCK, self._size)
        data = bytearray(stop - start)
        self._fetch(Run([(start, memoryview(data))]))
        fresh = {first + i: bytes(data[i * BLOCK : (i + 1) * BLOCK]) for i in range(-(-len(data) // BLOCK))}
        if len(self._blocks) + len(fresh) > _MAX_CACHED:
            self._blocks.clear()
        self._blocks.update(fresh)
        self._next_block = first + len(fresh)
        return fresh
