"""Parts of a file on a web server, read by HTTP range requests."""

from __future__ import annotations

import re
import ssl
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shardload.checkpoint.sources.blocks import BlockReader
from shardload.checkpoint.sources.hub_errors import client_errors, from_client, from_status, is_transient
from shardload.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from socket import socket

    from shardload.checkpoint.sources.hub_errors import Asked
    from shardload.checkpoint.sources.runs import Run
    from shardload.errors import ShardloadError

PIECE = 4 * 1024
"""Bytes that are asked for again at most where a connection is cut: requests drops the piece that it is reading."""

RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each retry of a request that returned nothing."""

_FROM_SOCKET = 1024 * 1024  # bytes that are still wanted: for fewer it is not worth it
_SLOWEST = 20_000  # bytes a second; a slower server is given up
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class RangeReader(BlockReader):
    """Reads parts of the file at `url`, of `size` bytes, keeping the last few blocks in memory.

    `asked` describes the request in errors. Raises NotFoundError or AccessError for what the server refuses, and
    CorruptError when it sends other bytes than were asked for.
    """

    def __init__(self, url: str, size: int, *, headers: Mapping[str, str], asked: Asked) -> None:
        self._url = url
        super().__init__(size)
        self._asked = asked
        # Compressed bytes have other offsets than the file's own.
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._direct: str | None = None
        self._reads_socket = True

    def _fetch(self, run: Run) -> None:
        """Fetch the bytes of a run, asking again for the rest when the connection is cut."""
        deadline = time.monotonic() + 30 + run.left / _SLOWEST
        failures = 0
        while run.left:
            before = run.at
            fault: ShardloadError = self._corrupt("stopped sending before the bytes asked for were complete")
            try:
                retry = self._request(run, deadline)
            except client_errors() as error:
                fault = from_client(error, self._asked)
                self._direct = None
            else:
                fault = retry or fault
            if run.at == before:
                if failures == len(RETRY_DELAYS) or time.monotonic() > deadline:
                    raise fault
                time.sleep(RETRY_DELAYS[failures])
                failures += 1

    def _request(self, run: Run, deadline: float) -> ShardloadError | None:
        """Take the bytes of one request; return a fault that is worth a retry, raise any other."""
        url = self._direct or self._url
        headers = {**self._headers, "Range": f"bytes={run.at}-{run.stop - 1}"}
        if not _same_origin(url, self._url):
            headers.pop("authorization", None)
        with _stream(url, headers) as response:
            status = int(response.status_code)
            if status not in {200, 206}:
                if url != self._url:
                    self._direct = None  # the signed address has expired: ask the Hub for a new one
                    return self._request(run, deadline)
                code = str(response.headers.get("X-Error-Code") or "")
                fault = from_status(status, code, self._asked)
                if not is_transient(status):
                    raise fault
                return fault
            self._check(response, status, run.at)
            final = str(response.url)
            self._direct = None if final == self._url else final
            # A body that is read to its end leaves a connection that can be used again; a whole file is not.
            is_exact = response.headers.get("Content-Length") == str(run.left)
            pieces = _pieces(response)
            for piece in pieces:
                run.take(piece)
                if run.left >= _FROM_SOCKET and self._reads_socket:
                    self._take_from_socket(response, pieces, run, deadline)
                if not run.left and not is_exact:
                    break
                self._require_pace(deadline)
        return None

    def _take_from_socket(self, response: Any, pieces: Iterator[bytes], run: Run, deadline: float) -> None:
        """Receive the rest straight into its memory, after the first piece of a response: nothing of it is buffered.

        The client hands pieces of 64 KB through three layers, at a third of the rate. Where the rest doesn't come whole
        this way, it is asked for again the usual way.
        """
        received, counter = _socket_of(response), _counter_of(response)
        begun = run.at
        if received is None or (counter is not None and counter._remaining != run.left):
            self._reads_socket = False
            return
        while run.left:
            try:
                got = received.recv_into(run.space())
            except OSError:
                got = 0
            run.advance(got)
            if not got:
                run.rewind(begun)
                self._reads_socket = False
                raise ConnectionResetError("the connection was closed before the end")
            self._require_pace(deadline)
        if counter is not None:
            counter._remaining = 0
            for _ in pieces:  # which ends the response for the client: its connection is used again
                pass

    def _require_pace(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise self._corrupt(f"sends fewer than {_SLOWEST // 1000} kB a second")

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


def _socket_of(response: Any) -> socket | None:
    """Return the socket on which the rest of a body comes as it is; None where it may be coded, or is not ours."""
    extensions = getattr(response, "extensions", {})
    stream = extensions.get("network_stream")
    if stream is None or extensions.get("http_version") != b"HTTP/1.1":
        return None
    if "Transfer-Encoding" in response.headers or "Content-Length" not in response.headers:
        return None
    found, inner = stream.get_extra_info("socket"), stream.get_extra_info("ssl_object")
    secured = isinstance(found, ssl.SSLSocket)
    if isinstance(inner, ssl.SSLObject) or secured != (response.url.scheme == "https"):
        return None  # a tunnel inside a tunnel, or a proxy: what the socket gives is not the body
    return found if hasattr(found, "recv_into") else None


_INSIDE = ("_stream", "_httpcore_stream", "_connection", "_h11_state", "_reader")


def _counter_of(response: Any) -> Any:
    """Return the object that counts the bytes which the client still expects of a body, as `_remaining`, or None.

    Without it, or with another client, the connection is closed after a response whose rest came from the socket.
    """
    found = getattr(response, "stream", None)  # a response of requests has none
    while found is not None and type(getattr(found, "_remaining", None)) is not int:
        inside = (getattr(found, name, None) for name in _INSIDE)
        found = next((each for each in inside if each is not None), None)
    return found


def _pieces(response: Any) -> Iterator[bytes]:
    if hasattr(response, "iter_raw"):
        yield from response.iter_raw()
    else:
        yield from response.iter_content(PIECE)


def _same_origin(url: str, other: str) -> bool:
    a, b = urlsplit(url), urlsplit(other)
    return (a.scheme, a.hostname, a.port) == (b.scheme, b.hostname, b.port)
