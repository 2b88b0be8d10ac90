"""render_chat_template: sends a template to the rendering process and returns its answer."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from shardload.errors import CorruptError, ShardloadError, UnsafeError, UnsupportedError, UsageError

SECONDS = 0.3
"""The processor time that one template may take, in seconds; a usual one takes a hundredth of it."""

_MEMORY = 768 << 20
_HERE = Path(__file__).parent


def render_chat_template(template: str, variables: dict[str, Any], *, where: str | None = None) -> str:
    """Return a template rendered with these variables, which must be plain data (they travel as JSON).

    `where` names the template's file in errors. Raises UsageError when the template refuses the conversation or fails
    on it, CorruptError for a text that is not a Jinja template, UnsafeError for one that uses what the sandbox forbids
    or does not end within SECONDS, and UnsupportedError where jinja2 is not installed.
    """
    try:
        request = json.dumps({"template": template, "variables": variables})
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"messages and tools must be plain data (texts, numbers, lists, dictionaries): {error}",
            where="apply_chat_template",
        ) from error
    answer = _worker.ask(request)
    if "text" in answer:
        return str(answer["text"])
    raise _ERRORS[answer["kind"]](answer["what"], where or "the chat template")


def _error(kind: type[ShardloadError], prefix: str, cure: str) -> Any:
    def make(what: str, where: str) -> ShardloadError:
        return kind(f"{prefix}{what}", where=where, cure=cure)

    return make


_READ_IT = "read the template; pass chat_template= with one of your own"
_ERRORS = {
    "raised": _error(
        UsageError, "the chat template refuses the conversation: ", "change the messages as it says"
    ),
    "failed": _error(UsageError, "the chat template fails on this conversation: ", _READ_IT),
    "syntax": _error(CorruptError, "the chat template is not a Jinja template: ", _READ_IT),
    "forbidden": _error(
        UnsafeError, "the chat template asks for what its sandbox forbids: ", f"don't trust it; {_READ_IT}"
    ),
    "limit": _error(UnsafeError, "the chat template was stopped: ", f"don't trust it; {_READ_IT}"),
}


class _Worker:
    """One rendering process, which takes one request at a time and is replaced after it had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, request: str) -> dict[str, Any]:
        with self._lock:
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._end()
                self._process = _start()
                self._owner = os.getpid()
            try:
                return self._exchange(self._process, request)
            except (
                BaseException
            ):  # after an interrupt here the next request would read the answer to this one
                self._end()
                raise

    def _exchange(self, process: subprocess.Popen[str], request: str) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        # Where a busy machine gives the process no processor time to count, wall time ends it.
        watchdog = threading.Timer(30, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            watchdog.cancel()
        if line.endswith("\n"):
            found: dict[str, Any] = json.loads(line)
            return found
        self._end()
        return {
            "kind": "limit",
            "what": f"it did not end within {SECONDS} s of processor time, or took too much memory",
        }

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._owner == os.getpid():  # in a forked child the process belongs to the parent
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            self._end()


def _start() -> subprocess.Popen[str]:
    places = {_home_of(package) for package in ("jinja2", "markupsafe")}
    if not sys.executable:
        raise UnsupportedError("chat templates need a Python to run in, and sys.executable names none")
    process = subprocess.Popen(  # noqa: S603 - this Python, and a file of this package
        [sys.executable, "-I", "-S", "-X", "utf8", str(_HERE / "worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in ("TZ", "LD_LIBRARY_PATH") if name in os.environ},
        text=True,
        encoding="utf-8",
        # Ctrl-C in a terminal goes to every process of the group, and this one is ended by its parent alone.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    setup = {"path": sorted(places), "here": str(_HERE), "seconds": SECONDS, "memory": _MEMORY}
    try:
        process.stdin.write(json.dumps(setup) + "\n")
        process.stdin.flush()
        ready = process.stdout.readline()
    except OSError:
        ready = ""
    if not ready:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        raise UnsupportedError(
            "the process that renders chat templates did not start",
            where=f"{sys.executable} {_HERE / 'worker.py'}",
        )
    return process


def _home_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise UnsupportedError(f"chat templates need the package {package}", cure="pip install jinja2")
    return str(Path(spec.origin).parent.parent)


_worker = _Worker()
atexit.register(_worker.close)
