"""Cached blob: whether a link in the Hub's cache leads to the content that the Hub lists for that file."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shardload._system.file_identity import file_identity
from shardload.checkpoint.sources.digest import Digest
from shardload.errors import CorruptError

if TYPE_CHECKING:
    from pathlib import Path

    from shardload.checkpoint.sources.source import SourceFile

_SMALL = 1_000_000  # bytes that are hashed where the link's name and the listing use two kinds of hashes
_BY = "the listing in the Hub's cache"


def require_blob(file: SourceFile, held: Digest | None, listed: Digest | None) -> None:
    """Raise CorruptError where a cached file's blob is named `held`, and the Hub lists another content.

    None is what is not known: nothing is compared then.
    """
    if listed is None or held is None:
        return
    found = held.hex
    if held.kind != listed.kind:
        if file.size > _SMALL:
            return
        found = listed.of(file.read_at(0, file.size))
    if found != listed.hex:
        raise CorruptError(
            f"{file.name!r} in the Hub's cache is a link to the content of another file or revision",
            where=f"{file.local_path()}: {listed.by} says {listed.kind} {listed.hex}, the link leads to {found}",
            cure="remove that link, then load again with the network on: the right content is fetched or linked",
        )


def cached_digest(repo: Path, commit: str, name: str) -> Digest | None:
    """Return the hash of a file in the listing of a commit that the Hub's client left in its cache, or None."""
    path = repo / "trees" / f"{commit}.json"
    try:
        return _listing(path, file_identity(path)).get(name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # absent, or of another version of the client


@lru_cache(maxsize=8)
def _listing(path: Path, identity: object) -> dict[str, Digest]:  # noqa: ARG001 - the key of the cache
    """Read a listing; `identity` tells its versions apart."""
    entries: dict[str, dict[str, Any]] = json.loads(path.read_bytes())["files"]
    names = {name: entry.get("lfs_sha256") or entry.get("blob_id") for name, entry in entries.items()}
    digests = {name: Digest.of_blob_name(held, _BY) for name, held in names.items() if isinstance(held, str)}
    return {name: digest for name, digest in digests.items() if digest is not None}
