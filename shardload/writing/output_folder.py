"""The folder that a checkpoint is written into: what can be none is refused before anything is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shardload.errors import UnsupportedError, UsageError
from shardload.where import Where

if TYPE_CHECKING:
    from collections.abc import Iterable


def folder_to_write(folder: str | os.PathLike[str], sources: Iterable[Path] = ()) -> Path:
    """Return the path of a folder to write into.

    Raises UnsupportedError for an address in a store, which as a path would be a folder "s3:" of the working directory;
    UsageError for what can be no folder, and for one of the `sources` of the output, or a folder inside it.
    """
    if Where(folder).is_in_store:
        scheme = str(folder).partition("://")[0].lower()
        raise UnsupportedError(
            "checkpoints are written into folders, and this is an address in a store",
            where=f"{scheme}://…",
            cure="write into a folder, and copy that into the store",
        )
    target = Path(folder).absolute()
    if "\0" in str(target):
        raise UsageError(
            f"{str(target)!r} holds a NUL, which no path has", cure="pass a folder to write into"
        )
    if os.path.lexists(target) and not target.is_dir():
        what = "a file" if target.exists() else "a link that leads nowhere"
        raise UsageError(f"{target} is {what}", cure="pass a folder to write into")
    real = target.resolve()
    for source in sources:
        own = source.resolve()
        if real == own or own in real.parents:
            raise UsageError(
                "the output would be written into the folder that it is made from",
                where=str(target),
                cure="write into another folder",
            )
    return target
