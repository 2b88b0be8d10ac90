"""folder_of: a folder with a repo's settings, for a class that reads files by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import NotFoundError

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import Source


def folder_of(source: Source) -> str:
    """Return a folder on this disk with the repo's small files (.json, .jinja), fetched from the Hub where needed.

    Raises NotFoundError where the repo has none.
    """
    names = [name for name in source.names() if "/" not in name and name.endswith((".json", ".jinja"))]
    paths = [source.open(name).local_path() for name in names if not name.endswith(".index.json")]
    if not paths:
        raise NotFoundError("the repo has no settings (.json)", where=source.label)
    return str(paths[0].parent)
