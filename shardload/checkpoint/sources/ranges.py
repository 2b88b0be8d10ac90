"""Parts of a file on a web server, read by HTTP range requests."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shardload.checkpoint.sources.hub_errors import client_errors, from_client, from_status, is_transient
from shardload.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardload.checkpoint.sources.hub_errors import Asked
    from shardload.errors import ShardloadError

BLOCK = 64 * 1024
"""Bytes in the smallest request; smaller reads share it."""

PIECE = 4 * 1024
"""Bytes that are asked for again at most where a connection is cut: requests drops the piece that it is reading."""

MAX_AHEAD = 16
"""Blocks that one request fetches at most while a file is read from front to back."""

_MAX_CACHED = 128  # blocks: 8 MiB a file
_UNCACHED = 4 * 1024 * 1024  # a read this long is not kept
RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each retry of a request that returned nothing."""

_SLOWEST = 20_000  # bytes a second; a slower server is given up
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class RangeReader:
    """Reads parts of the file at `url`, of `size` bytes, keeping the last few blocks in memory.

    `asked` describes the request in errors. Raises NotFoundError or AccessError for what the server refuses, and
    CorruptError when it sends other bytes than were asked for.
    """

    def __init__(self, url: str, size: int, *, headers: Mapping[str, str], asked: Asked) -> None:
        self._url = url
        self._size = size
        self._asked = asked
        # Compressed bytes have other offsets than the file's own.
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._direct: str | None = None
        self._blocks: dict[int, bytes] = {}
        self._next_block = -1
        self._run = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at the end of the file."""
        if offset < 0 or length < 0:
            raise ValueError(f"offset and length must not be negative, got {offset} and {length}")
        stop = min(offset + length, self._size)
        if offset >= stop:
            return b""
        if stop - offset >= _UNCACHED:
            return self._fetch(offset, stop)
        first, last = offset // BLOCK, (stop - 1) // BLOCK
        blocks = self._gather(first, last)
        joined = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        return joined[offset - first * BLOCK : stop - first * BLOCK]

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
        self._run = self._run + 1 if first == self._next_block else 0
        last = max(last, first + min(2 ** max(0, self._run - 1), MAX_AHEAD) - 1)
        start, stop = first * BLOCK, min((last + 1) * BLOCK, self._size)
        data = self._fetch(start, stop)
        fresh = {first + i: data[i * BLOCK : (i + 1) * BLOCK] for i in range(-(-len(data) // BLOCK))}
        if len(self._blocks) + len(fresh) > _MAX_CACHED:
            self._blocks.clear()
        self._blocks.update(fresh)
        self._next_block = first + len(fresh)
        return fresh

    def _fetch(self, start: int, stop: int) -> bytes:
        """Fetch the bytes start..stop, asking again for the rest when the connection is cut."""
        got = bytearray()
        deadline = time.monotonic() + 30 + (stop - start) / _SLOWEST
        failures = 0
        while len(got) < stop - start:
            before = len(got)
            fault: ShardloadError = self._corrupt("stopped sending before the bytes asked for were complete")
            try:
                retry = self._request(got, start + before, stop, deadline)
            except client_errors() as error:
                fault = from_client(error, self._asked)
                self._direct = None
            else:
                fault = retry or fault
            if len(got) == before:
                if failures == len(RETRY_DELAYS) or time.monotonic() > deadline:
                    raise fault
                time.sleep(RETRY_DELAYS[failures])
                failures += 1
        return bytes(got)

    def _request(self, got: bytearray, start: int, stop: int, deadline: float) -> ShardloadError | None:
        """Append the bytes of one request to `got`; return a fault that is worth a retry, raise any other."""
        url = self._direct or self._url
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        if not _same_origin(url, self._url):
            headers.pop("authorization", None)
        with _stream(url, headers) as response:
            status = int(response.status_code)
            if status not in {200, 206}:
                if self._direct:
                    self._direct = None  # the signed address has expired: ask the Hub for a new one
                    return self._request(got, start, stop, deadline)
                code = str(response.headers.get("X-Error-Code") or "")
                fault = from_status(status, code, self._asked)
                if not is_transient(status):
                    raise fault
                return fault
            self._check(response, status, start)
            final = str(response.url)
            self._direct = None if final == self._url else final
            for piece in _pieces(response):
                got += piece[: stop - start]
                start += len(piece)
                if start >= stop:
                    break
                if time.monotonic() > deadline:
                    raise self._corrupt(f"sends fewer than {_SLOWEST // 1000} kB a second")
        return None

    def _check(self, response: Any, status: int, start: int) -> None:
        encoding = response.headers.get("Content-Encoding")
        if encoding not in {None, "", "identity"}:
            raise self._corrupt(
                f"sends parts of the file in the encoding {encoding!r}, which was not asked for"
            )
        if status == 200:
            # The server sends the whole file, which serves only a read from its start.
            if start:
                raise self._corrupt("ignores range requests")
            return
        described = response.headers.get("Content-Range") or ""
        match = _CONTENT_RANGE.fullmatch(described.strip())
        if not match or int(match[1]) != start:
            raise self._corrupt(f"answered a request for bytes from {start} with {described!r}")
        if match[3] not in {"*", str(self._size)}:
            raise self._corrupt(
                f"says that the file has {match[3]} bytes; the Hub's listing says {self._size}"
            )

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(
            f"the server of {self._asked.file!r} {what}",
            where=self._asked.place,
            cure="download the repo first (`hf download`) and read it from the disk",
        )


def client_retries() -> bool:
    """Whether the client itself sends a request again: so from 1.0 on, on httpx's session in place of requests'."""
    from huggingface_hub import get_session

    return callable(getattr(get_session(), "stream", None))


@contextmanager
def _stream(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """Open a streamed GET on the client's session."""
    from huggingface_hub import constants, get_session

    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if client_retries():
        opened = session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True)
    else:
        opened = session.get(url, headers=headers, timeout=timeout, stream=True, allow_redirects=True)
    with opened as response:
        yield response


def _pieces(response: Any) -> Iterator[bytes]:
    if hasattr(response, "iter_raw"):
        yield from response.iter_raw()
    else:
        yield from response.iter_content(PIECE)


def _same_origin(url: str, other: str) -> bool:
    a, b = urlsplit(url), urlsplit(other)
    return (a.scheme, a.hostname, a.port) == (b.scheme, b.hostname, b.port)
