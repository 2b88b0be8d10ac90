"""An unfinished output: what a writer that was killed left in a folder, and how to complete it."""

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
    """Return the cure for files that a source lacks: the usual one, or how to complete an output that was killed."""
    folder = Path(source.label)
    staged = folder / STAGING
    if not source.is_local or not os.path.lexists(staged):
        return usual
    killed = f"an output into this folder was killed; its files are in {STAGING}"
    cures = [f"{killed}: run the same save, conversion or merge again, which completes it"]
    if _is_moving(staged):
        here, there = quote(str(staged)), quote(str(folder))
        cures.append(f"its files are complete: `cp -rf {here}/* {there}/ && rm -r {here}`")
    return Cures(*cures, usual)


def _is_moving(staged: Path) -> bool:
    """Whether all files were complete when the writer was killed: its journal has the list of the moves."""
    try:
        with (staged / ".journal").open("rb") as journal:
            return any(line.startswith(b'{"moving":') for line in journal)
    except OSError:
        return False
