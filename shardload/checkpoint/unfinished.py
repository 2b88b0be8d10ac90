"""What a writer that was killed, or a download that stopped, left in a folder, and how to complete it."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from shardload.checkpoint.sources.names import STAGING
from shardload.errors import Cures

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import Source


def cure_of(source: Source, usual: str) -> str:
    """Return the cure for files that a source lacks: the usual one, or how to complete what was begun.

    That is an output that was killed, or a download that stopped.
    """
    folder = Path(source.label)
    staged = folder / STAGING
    if not source.is_local:
        return usual
    if not os.path.lexists(staged):
        begun = _half_downloads(folder)
        if not begun:
            return usual
        what = f"the download is not finished ({', '.join(begun[:3])}{' …' if len(begun) > 3 else ''})"
        return Cures(f"{what}: run it again, which completes it", usual)
    killed = f"an output into this folder was killed; its files are in {STAGING}"
    cures = [f"{killed}: run the same save, conversion or merge again, which completes it"]
    if _is_moving(staged):
        here, there = quote(str(staged)), quote(str(folder))
        cures.append(f"its files are complete: `cp -rf {here}/* {there}/ && rm -r {here}`")
    return Cures(*cures, usual)


_HALVES = (".incomplete", ".aria2", ".part", ".crdownload", ".download")


def _half_downloads(folder: Path) -> list[str]:
    """Return the files that a stopped download left: parts, and links of a snapshot that lead to nothing."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    return [
        entry.name
        for entry in entries
        if entry.name.endswith(_HALVES) or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110
    ]


def _is_moving(staged: Path) -> bool:
    """Whether all files were complete when the writer was killed: its journal has the list of the moves."""
    try:
        with (staged / ".journal").open("rb") as journal:
            return any(line.startswith(b'{"moving":') for line in journal)
    except OSError:
        return False
