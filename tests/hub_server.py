"""A server on loopback that speaks the part of the Hub's HTTP API that the real client uses.

    with HubServer(tmp_path / "hub") as hub:
        commit = hub.commit("org/model", {"config.json": b"{}", "model.safetensors": some_path})
        hub.use(monkeypatch, cache=tmp_path / "cache")   # this process
        subprocess.run(..., env=hub.env(tmp_path / "cache"))   # another process
        ...
        assert hub.fetched() == {"config.json"}

Repos have several commits and branches; files of `LARGE` bytes or more are redirected to a second server that
stands for the CDN, as large files are on the Hub. `fault()` breaks single files; `requests` is the log.

huggingface_hub reads its environment once, when it is imported. A process started with `env()` is all right.
In the test's own process `use()` sets the same values on `huggingface_hub.constants`, where the client looks
them up at each call, and closes the client's pooled connections, which belong to the server of an earlier
test. Xet and proxies are off and no token of this machine is seen: nothing leaves loopback.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGE = 256 * 1024
"""Files from this size on are redirected to the CDN."""


@dataclass(frozen=True)
class Blob:
    """The bytes of one file, kept on disk, and their hashes: git's id names small files, SHA-256 large ones."""

    path: Path
    size: int
    sha256: str
    git: str


@dataclass
class Repo:
    """Commits (hash to files), branches (name to hash), and who may read the files."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None  # the only token that sees a private repo, or the files of a gated one
    gated: bool = False


@dataclass
class Fault:
    """What goes wrong with a file; `times` counts down, None is always.

    `status` and `code` answer instead of the file. `cut` ends the connection after that many bytes of a
    response, `stall` sends nothing more after that many. `longer` is added to the Content-Length, `size` is
    announced in place of the real one at HEAD. `ignore_range` sends the whole file, `shift` sends the range
    that many bytes later. `page` is the answer to a question of the API.
    """

    status: int | None = None
    code: str = ""
    message: str = ""
    cut: int | None = None
    stall: int | None = None
    longer: int = 0
    size: int | None = None
    ignore_range: bool = False
    shift: int = 0
    page: bytes | None = None
    times: int | None = None


@dataclass
class Request:
    """One request as it was answered; `sent` counts the bytes of the body. `host` is "hub" or "cdn"."""

    method: str
    host: str
    path: str
    file: str
    range: str
    token: str
    status: int = 0
    sent: int = 0


class HubServer:
    """The server; a context manager. `root` is a folder for the files' bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repos: dict[str, Repo] = {}
        self.log: list[Request] = []
        self._faults: dict[tuple[str, str], Fault] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._servers = [_Server(self, host) for host in ("hub", "cdn")]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self):
        self.root.mkdir(parents=True, exist_ok=True)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close both ports and every connection: from now on the network is down."""
        self._stopping.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for connection in sockets:
            _hang_up(connection)

    def commit(
        self,
        repo: str,
        files: Mapping[str, bytes | Path] | Path,
        *,
        branch: str = "main",
        token: str | None = None,
        gated: bool = False,
    ) -> str:
        """Make `files` (bytes, paths, or a whole folder) the newest commit of `branch`; return its hash.

        `token` makes the repo private to that token or, with `gated`, its files. Paths are served in place.
        """
        if isinstance(files, Path):
            files = {str(p.relative_to(files)): p for p in sorted(files.rglob("*")) if p.is_file()}
        blobs = {name: self._store(content) for name, content in files.items()}
        entry = self.repos.setdefault(repo, Repo())
        entry.token, entry.gated = token, gated
        story = json.dumps([repo, len(entry.commits), sorted((n, b.sha256) for n, b in blobs.items())])
        commit = hashlib.sha1(story.encode()).hexdigest()
        entry.commits[commit] = blobs
        entry.branches[branch] = commit
        return commit

    def fault(self, repo: str, file: str = "", **what: object) -> None:
        """Break `file` of `repo` from now on, or (without a file) the API's answers about the repo."""
        self._faults[repo, file] = Fault(**what)

    def heal(self) -> None:
        """Take every fault away."""
        self._faults.clear()

    @property
    def requests(self) -> list[Request]:
        """The requests so far, without the one that the client makes for its own user-agent header."""
        return [request for request in self.log if request.path != "/api/agent-harnesses"]

    def fetched(self) -> set[str]:
        """The files of which any byte was sent."""
        return {request.file for request in self.log if request.file and request.sent}

    def sent(self, file: str) -> int:
        """The bytes of `file` that were sent, in all its requests."""
        return sum(request.sent for request in self.log if request.file == file)

    def env(self, cache: Path, **more: str) -> dict[str, str]:
        """Return an environment for a process that is to see this server as the Hub."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        return {
            **{k: v for k, v in kept.items() if not k.lower().endswith("_proxy")},
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache.parent / "hf_home"),
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",
            "HF_HUB_ETAG_TIMEOUT": "30",
            "NO_PROXY": "*",
            **more,
        }

    def use(
        self, monkeypatch, *, cache: Path, timeout: float = 2, patient: bool = False, **more: str
    ) -> None:
        """Make this server the Hub of this process; `more` are further variables, such as HF_HUB_OFFLINE="1".

        Waits between the client's retries are left out unless `patient`. The caller's fixture calls
        `forget_connections()` after the test.
        """
        import huggingface_hub.file_download
        import huggingface_hub.utils._http
        from huggingface_hub import constants

        env = self.env(cache, **more)
        for name in set(os.environ) - set(env):
            monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        home = env["HF_HOME"]
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": home,
            "HF_HUB_CACHE": str(cache),
            "HUGGINGFACE_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": f"{home}/token",
            "HF_STORED_TOKENS_PATH": f"{home}/stored_tokens",
            "AGENT_HARNESSES_PATH": f"{home}/.agent_harnesses.json",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": more.get("HF_HUB_OFFLINE") == "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": timeout,
            "HF_HUB_ETAG_TIMEOUT": timeout,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value, raising=False)
            # Some modules, more of them in older versions, hold a copy of their own.
            for module in [m for n, m in sys.modules.items() if n.startswith("huggingface_hub.")]:
                if name in vars(module):
                    monkeypatch.setattr(module, name, value)
        if not patient:
            hurried = SimpleNamespace(**{**vars(time), "sleep": lambda _seconds: None})
            for module in (huggingface_hub.file_download, huggingface_hub.utils._http):
                monkeypatch.setattr(module, "time", hurried)
        forget_connections()

    def _store(self, content: bytes | Path) -> Blob:
        if isinstance(content, Path):
            with content.open("rb") as file:
                size = content.stat().st_size
                digest, git = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
                while piece := file.read(1 << 20):
                    digest.update(piece)
                    git.update(piece)
            return Blob(content, size, digest.hexdigest(), git.hexdigest())
        digest = hashlib.sha256(content)
        path = self.root / digest.hexdigest()
        path.write_bytes(content)
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content)
        return Blob(path, len(content), digest.hexdigest(), git.hexdigest())

    def take_fault(self, repo: str, file: str, *, redirecting: bool = False) -> Fault:
        """Return the fault of a file, or one that does nothing, and count it down.

        What goes wrong with the bytes of a large file goes wrong at the CDN, not where the Hub redirects to it.
        """
        with self._lock:
            fault = self._faults.get((repo, file))
            if fault is None or fault.times == 0:
                return Fault()
            if redirecting and fault.status is None:
                return Fault(size=fault.size)
            if fault.times is not None:
                fault.times -= 1
            return replace(fault)

    def opened(self, connection: socket.socket, *, closed: bool = False) -> None:
        """Keep track of a connection, so that `stop` can end it."""
        with self._lock:
            (self._sockets.discard if closed else self._sockets.add)(connection)

    def wait(self) -> None:
        """Stall until the server stops."""
        self._stopping.wait(30)


def forget_connections() -> None:
    """Close the client's pooled connections."""
    from huggingface_hub.utils import _http

    # The second is the name in huggingface_hub before 1.0.
    close = getattr(_http, "close_session", None) or _http.reset_sessions
    close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubServer, host: str) -> None:
        self.hub = hub
        self.host = host
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request, client_address) -> None:
        # A client that goes away in the middle is part of many tests.
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def setup(self) -> None:
        super().setup()
        self.server.hub.opened(self.connection)

    def finish(self) -> None:
        self.server.hub.opened(self.connection, closed=True)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub = self.server.hub
        url = urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.request_log = Request(
            self.command, self.server.host, url.path, "", self.headers.get("Range") or "", token
        )
        self.hub.log.append(self.request_log)
        if self.server.host == "cdn":
            name, commit, file = parts[0].replace("--", "/"), parts[1], "/".join(parts[2:])
            if file in self.hub.repos[name].commits.get(commit, {}):
                self.send_blob(name, commit, file, {})
            else:
                self.refuse(403, "", "Request has expired")
        elif parts[:2] == ["api", "models"]:
            self.api(parts[2:], parse_qs(url.query))
        elif "resolve" in parts:
            at = parts.index("resolve")
            self.resolve("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self.refuse(404, "", "no such page")

    # ---- the API

    def api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        marks = [i for i, part in enumerate(parts) if part in {"revision", "tree"}]
        at = marks[0] if marks else len(parts)
        name, revision = "/".join(parts[:at]), parts[at + 1] if marks else "main"
        fault = self.hub.take_fault(name, "")
        if fault.stall is not None:
            self.hub.wait()
        if fault.status:
            self.refuse(fault.status, fault.code, fault.message)
            return
        if fault.page is not None:
            self.reply(200, {"Content-Type": "text/html"}, fault.page)
            return
        found = self.find(name, revision, files=False)
        if found is None:
            return
        commit, blobs = found
        if marks and parts[at] == "tree":
            answer: object = [
                {"type": "file", "path": n, "size": b.size, "oid": b.git} for n, b in blobs.items()
            ]
        else:
            with_sizes = bool(query.get("blobs"))
            siblings = [
                {"rfilename": n, **(self.described(b) if with_sizes else {})}
                for n, b in sorted(blobs.items())
            ]
            answer = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0,
                      "likes": 0, "siblings": siblings}  # fmt: skip
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def described(self, blob: Blob) -> dict[str, object]:
        if blob.size < LARGE:
            return {"size": blob.size, "blobId": blob.git}
        lfs = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
        return {"size": blob.size, "blobId": "0" * 40, "lfs": lfs}

    def find(self, name: str, revision: str, *, files: bool) -> tuple[str, dict[str, Blob]] | None:
        """Find the commit, or answer as the Hub does for a repo that this caller may not see."""
        repo = self.hub.repos.get(name)
        token = self.request_log.token
        known = {entry.token for entry in self.hub.repos.values()} | {"", None}
        if token not in known:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.token and not repo.gated and token != repo.token):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif files and repo.gated and token != repo.token:
            self.refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        elif (commit := repo.branches.get(revision, revision)) not in repo.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return commit, repo.commits[commit]
        return None

    # ---- files

    def resolve(self, name: str, revision: str, file: str) -> None:
        self.request_log.file = file
        found = self.find(name, revision, files=True)
        if found is None:
            return
        commit, blobs = found
        if file not in blobs:
            self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        blob = blobs[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.git}"'}
        if blob.size < LARGE:
            self.send_blob(name, commit, file, headers)
            return
        fault = self.hub.take_fault(name, file, redirecting=True)
        if fault.status:
            self.refuse(fault.status, fault.code, fault.message)
            return
        headers["X-Linked-Etag"] = f'"{blob.sha256}"'
        headers["X-Linked-Size"] = str(fault.size or blob.size)
        headers["Location"] = f"{self.hub.cdn}/{name.replace('/', '--')}/{commit}/{file}"
        self.reply(302, headers, b"")

    def send_blob(self, name: str, commit: str, file: str, headers: dict[str, str]) -> None:
        self.request_log.file = file
        blob = self.hub.repos[name].commits[commit][file]
        fault = (
            Fault()
            if self.command == "HEAD" and self.server.host == "cdn"
            else self.hub.take_fault(name, file)
        )
        if fault.status:
            self.refuse(fault.status, fault.code, fault.message)
            return
        start, stop, status = 0, blob.size, 200
        wanted = self.request_log.range.removeprefix("bytes=")
        if wanted and not fault.ignore_range:
            first, _, last = wanted.partition("-")
            start, stop, status = int(first), min(int(last or blob.size) + 1, blob.size), 206
            if start >= blob.size:
                self.reply(416, {"Content-Range": f"bytes */{blob.size}"}, b"")
                return
            start, stop = start + fault.shift, stop + fault.shift
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{blob.size}"}
        length = stop - start + fault.longer
        if self.command == "HEAD" and fault.size is not None:
            length = fault.size
        self.head(status, {**headers, "Content-Length": str(length), "Accept-Ranges": "bytes"})
        if self.command == "GET":
            self.send_bytes(blob, start, stop, fault)

    def send_bytes(self, blob: Blob, start: int, stop: int, fault: Fault) -> None:
        limits = [limit for limit in (fault.cut, fault.stall) if limit is not None]
        end = min([stop, *(start + limit for limit in limits)])
        with blob.path.open("rb") as file:
            file.seek(start)
            while start < end:
                piece = file.read(min(1 << 16, end - start))
                self.request_log.sent += len(piece)  # before: the client may have the piece, and ask, at once
                try:
                    self.wfile.write(piece)
                except OSError:
                    self.request_log.sent -= len(piece)
                    raise
                start += len(piece)
        if fault.stall is not None:
            self.hub.wait()
        if fault.cut is not None or fault.longer > 0 or fault.stall is not None:
            self.close_connection = True
            _hang_up(self.connection)

    # ---- answers

    def refuse(self, status: int, code: str, message: str, more: dict[str, str] | None = None) -> None:
        headers = {**(more or {}), "X-Error-Message": message, "Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        self.reply(status, headers, json.dumps({"error": message}).encode())

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.head(status, {**headers, "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.request_log.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
