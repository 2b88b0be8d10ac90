"""A server on loopback that speaks as much of S3, and of plain HTTP, as a checkpoint is read by, and can break.

    with StoreServer({"m/config.json": b"{}", "m/model.safetensors": content}) as server:
        open_checkpoint(f"s3://bucket/m", storage_options=server.options())
        open_checkpoint(f"{server.url}/m/")

A fault is set for a path: `server.fault("m/model.safetensors", status=503, times=2)`. What a client sent is in `log`,
of both hosts: the second one, `other`, is where faults redirect to, and serves the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@dataclass
class Fault:
    """What goes wrong with a file; `times` counts down, None is always.

    `status` answers instead of the file; `cut` ends the connection after so many bytes of a body. `etag` is another,
    `ignores_match` serves another version whatever If-Match says. `ignore_range` sends the whole file, `shift` a range
    so many bytes later. `redirect` sends the client to the other host. Only ranges longer than `above` are concerned.
    """

    status: int | None = None
    cut: int | None = None
    etag: str | None = None
    ignores_match: bool = False
    ignore_range: bool = False
    shift: int = 0
    redirect: bool = False
    above: int = -1
    times: int | None = None


@dataclass
class Request:
    method: str
    host: str
    path: str
    headers: dict[str, str]
    query: str = ""
    sent: int = 0
    status: int = 0


@dataclass
class StoreServer:
    files: dict[str, bytes]
    log: list[Request] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    date: str = DATE
    has_etags: bool = True

    def __enter__(self):
        self._lock = threading.Lock()
        self._servers = [_Server(self, host) for host in ("127.0.0.1", "localhost")]
        self.url, self.other = (f"http://{s.host}:{s.server_port}/{BUCKET}" for s in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def options(self, **more: object) -> dict[str, object]:
        """Return what reaches the bucket by `s3://bucket/…`, and does not wait long before it tries again."""
        return {
            "endpoint": self.url.removesuffix(f"/{BUCKET}"),
            "access_key_id": "AKIDSECRET",
            "secret_access_key": "KEYSECRET",
            "region": "us-east-1",
            "allow_http": True,
            **self.patience(),
            **more,
        }

    def patience(self) -> dict[str, object]:
        pause = timedelta(milliseconds=1)
        return {
            "retry_config": {
                "max_retries": 3,
                "backoff": {"init_backoff": pause, "max_backoff": pause, "base": 2},
            }
        }

    def fault(self, path: str, **what: object) -> None:
        self.faults[path] = Fault(**what)

    def sent(self, path: str) -> int:
        return sum(request.sent for request in self.log if request.path == path)

    def gets(self, path: str) -> list[Request]:
        return [request for request in self.log if request.path == path and request.method == "GET"]

    def take_fault(self, path: str, length: int) -> Fault:
        with self._lock:
            fault = self.faults.get(path)
            if fault is None or fault.times == 0 or length <= fault.above:
                return Fault()
            if fault.times is not None:
                fault.times -= 1
            return replace(fault)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, store: StoreServer, host: str) -> None:
        self.store, self.host = store, host
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request, client_address) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        store = self.server.store
        url = urlsplit(self.path)
        bucket, _, path = unquote(url.path).lstrip("/").partition("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_log = Request(self.command, self.server.host, path, headers, url.query)
        store.log.append(self.request_log)
        if bucket != BUCKET:
            self.reply(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif "list-type" in url.query:
            self.list(parse_qs(url.query).get("prefix", [""])[0])
        elif path not in store.files:
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.send(path, store.files[path])

    def list(self, prefix: str) -> None:
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-10-21T07:28:00.000Z</LastModified>"
            f"<ETag>&quot;{etag_of(content)}&quot;</ETag><Size>{len(content)}</Size></Contents>"
            for name, content in sorted(self.server.store.files.items())
            if name.startswith(prefix)
        )
        self.reply(
            200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
        )

    def send(self, path: str, content: bytes) -> None:
        first, _, last = self.request_log.headers.get("range", "").removeprefix("bytes=").partition("-")
        start, stop = (int(first), min(int(last) + 1, len(content))) if first else (0, len(content))
        fault = self.server.store.take_fault(path, stop - start if self.command == "GET" else 0)
        etag = f'"{fault.etag or etag_of(content)}"'
        if fault.redirect and self.server.host == "127.0.0.1":
            other = self.server.store.other.removesuffix(f"/{BUCKET}") + self.path
            self.reply(307, b"", {"Location": other})
        elif fault.status:
            self.reply(fault.status, b"<Error><Code>SlowDown</Code></Error>")
        elif self.request_log.headers.get("if-match", etag) != etag and not fault.ignores_match:
            self.reply(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            status = 206 if first and not fault.ignore_range else 200
            start, stop = (
                (0, len(content)) if fault.ignore_range else (start + fault.shift, stop + fault.shift)
            )
            ranged = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"} if status == 206 else {}
            named = {"ETag": etag} if self.server.store.has_etags else {}
            self.reply(status, content[start:stop], {**named, **ranged}, cut=fault.cut)

    def reply(
        self, status: int, body: bytes, more: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.request_log.status = status
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Last-Modified": self.server.store.date,
            **(more or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.request_log.sent += len(body[:cut])
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True
                self.wfile.flush()
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)


def etag_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
