"""Where a checkpoint's files come from: a folder, a repo on the Hugging Face Hub, or an object store."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from shardload.checkpoint.sources.folder import FolderSource, LocalFile, expand, mode_of
from shardload.errors import (
    Cures,
    NotFoundError,
    UnsafeError,
    UsageError,
    Wording,
    keyword,
)
from shardload.keywords import place_of

if TYPE_CHECKING:
    from pathlib import Path

    from shardload.checkpoint.sources.source import Source
    from shardload.where import WhereLike

__all__ = ["FolderSource", "LocalFile", "find_source"]

_REPO_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(?<![.-])(?<!\.git)"
_REPO = re.compile(rf"{_REPO_PART}(?:/{_REPO_PART})?", re.ASCII)
# The Hub's own repos have one part ("gpt2"); one that ends like a file is a missing file.
_FILE_LIKE = re.compile(r"\.(safetensors|bin|pth?|ckpt|json|gguf|zip|index)$", re.IGNORECASE)


def find_source(where: WhereLike) -> tuple[Source, str | None]:
    """Return the source that `where` names, and the one file that it names (or None for a whole repo).

    Its name is a folder, a single checkpoint file, `org/name`, `org/name@revision` or an address in a store
    (`s3://bucket/prefix`); what exists on this disk is taken before the Hub. `revision` is a branch, tag or commit of a
    Hub repo. Links that lead out of a folder are followed with `allow_links=True`, or into the Hub cache's own blobs.
    Raises UsageError where its fields contradict its name, NotFoundError, AccessError and UnsafeError.
    """
    place = place_of(where)
    if "://" in str(place.name) and place.is_in_store:
        from shardload.checkpoint.sources.store import open_store  # for those who have some

        return open_store(place, (place.subfolder or "").removesuffix("/") or None)
    text, revision = _text_of(place.name), place.revision
    subfolder = (place.subfolder or "").removesuffix("/") or None
    path = expand(text)
    mode = mode_of(path)
    if stat.S_ISDIR(mode):
        _refuse_for_local(text, revision=revision)
        return FolderSource(path, subfolder, allow_links=place.allow_links), None
    if mode:
        _refuse_for_local(text, revision=revision, subfolder=subfolder)
        return _source_of_file(path, place.allow_links)

    repo, at, named_revision = text.partition("@")
    if isinstance(place.name, os.PathLike) or not _is_repo(repo):
        raise NotFoundError(
            f"there is no file or folder {text!r}, and it can't be a repo on the Hub either",
            where=str(path.absolute()),
            cure="check the path; a Hub repo is passed as text: 'org/name' or 'org/name@revision'",
        )
    from shardload.checkpoint.sources.hub import (
        open_hub,  # imports huggingface_hub, which no local checkpoint needs
    )

    source = open_hub(
        repo,
        _one_revision(text, named_revision if at else None, revision),
        token=place.token,
        cache_dir=place.cache_dir,
        local_files_only=place.local_files_only,
        subfolder=subfolder,
        disk=place.disk,
    )
    return source, None


def _text_of(where: object) -> str:
    text = os.fsdecode(where) if isinstance(where, (str, bytes, os.PathLike)) else ""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        text = ""
    if not text or "\0" in text:
        raise UsageError(
            f"{where!r} does not name a checkpoint",
            cure="pass a folder, a checkpoint file, org/name, org/name@revision or s3://bucket/prefix",
        )
    return text


def _is_repo(text: str) -> bool:
    return bool(_REPO.fullmatch(text)) and ("/" in text or not _FILE_LIKE.search(text))


def _one_revision(where: str, named: str | None, given: str | None) -> str | None:
    if named == "" or given == "":
        raise UsageError(
            f"the revision of {where!r} is empty", cure="name a branch, a tag or a commit, or nothing"
        )
    if named and given and named != given:
        raise UsageError(
            Wording("{0!r} and {revision} name two revisions", where, revision=given),
            cure="name the revision once",
        )
    return named or given


def _refuse_for_local(where: str, **keywords: str | None) -> None:
    for name, value in keywords.items():
        if value is not None:
            raise UsageError(
                Wording("{0} has no meaning for {1!r}, which is on this disk", keyword(name, value), where),
                where=where,
                cure=Cures(
                    Wording("leave {0} out", keyword(name)),
                    "run from another folder, if a Hub repo of that name is meant",
                ),
            )


def _source_of_file(path: Path, allow_links: bool) -> tuple[FolderSource, str]:
    """Return the file's folder and its name in it. A link that the caller named is followed wherever it leads."""
    source = FolderSource(path.parent, allow_links=allow_links)
    try:
        source.open(path.name).close()
    except UnsafeError:
        path = path.resolve()
        return FolderSource(path.parent), path.name
    return source, path.name
