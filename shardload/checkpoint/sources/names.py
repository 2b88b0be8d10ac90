"""File names inside a source: which are safe to open, and what to suggest when one is missing."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from shardload.errors import UnsafeError, Wording

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGING = ".shardload-output"
"""The hidden folder inside an output in which its files stay until all of them are complete."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DRIVE = re.compile(r"[A-Za-z]:")


def is_commit(revision: str | None) -> bool:
    """Return whether a revision is a full commit: 40 hex digits. A branch or a tag can be moved."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def fault_of(name: object) -> str | None:
    """Say why `name` may not be opened below a source's root, or None when it may.

    A name is relative and posix: parts of ordinary characters with one `/` between them. Names come from an
    index, a config or a server, so whatever any system could read as a way out of the root is a fault.
    """
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text"
    parts = name.split("/")
    faults = {
        "is empty": not name,
        "holds a NUL character": "\0" in name,
        "holds a backslash": "\\" in name,
        "is absolute": name.startswith("/"),
        "starts with a drive letter": bool(_DRIVE.match(name)),
        "climbs out with '..'": ".." in parts,
        "has an empty or '.' part": "" in parts or "." in parts,
        "cannot be written as UTF-8": any("\ud800" <= char <= "\udfff" for char in name),
    }
    return next((fault for fault, found in faults.items() if found), None)


def check_name(name: str, label: str) -> None:
    """Refuse a `name` that could leave the root of the source called `label`. Raises UnsafeError."""
    fault = fault_of(name)
    if fault:
        raise UnsafeError(
            f"the file name {name!r} {fault}, so it is not opened",
            where=label,
            cure="a checkpoint names files relative to its own folder: correct the name, or fetch the checkpoint again",
        )


def is_hidden(name: str) -> bool:
    """Whether a part of `name` starts with a dot: `.git`, `.cache`, `.gitattributes`."""
    return any(part.startswith(".") for part in name.split("/"))


def suggest(name: str, names: Sequence[str]) -> str:
    """Return the cure for a missing `name`: the nearest names, else the first few."""
    if not names:
        return Wording("it holds no files: check the folder or the repo, and {subfolder}", subfolder=...)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    if not near:
        base = name.rsplit("/", 1)[-1].lower()
        near = [other for other in names if other.rsplit("/", 1)[-1].lower() == base][:3]
    if near:
        return "the nearest names in it: " + ", ".join(map(repr, near))
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return "the files in it: " + ", ".join(map(repr, names[:5])) + rest
