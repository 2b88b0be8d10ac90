"""Reads the resident memory of a process from the kernel."""

from __future__ import annotations


def memory(pid: int | str = "self") -> tuple[int, int] | None:
    """Return the anonymous and the file-backed resident bytes of a process, or None when it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123 - not every measured process imports pathlib
            status = file.read()
    except OSError:
        return None
    if b"RssAnon:" not in status:  # the process has ended, and its parent has not collected it
        return None
    # Files of a tmpfs count as shared memory.
    return _field(status, b"RssAnon:"), _field(status, b"RssFile:") + _field(status, b"RssShmem:")


def _field(status: bytes, name: bytes) -> int:
    at = status.index(name) + len(name)
    return int(status[at:].split(None, 1)[0]) * 1024
