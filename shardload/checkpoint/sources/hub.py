"""A checkpoint in a repo on the Hugging Face Hub, at one commit."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Literal

from shardload.checkpoint.sources import hub_errors
from shardload.checkpoint.sources.cached_blob import require_blob
from shardload.checkpoint.sources.copies import Copies
from shardload.checkpoint.sources.folder import FolderSource, LocalFile, expand
from shardload.checkpoint.sources.hub_repo import Listed, PinnedRepo, ask_listing, has_token, pinned_in_cache
from shardload.checkpoint.sources.names import check_name, fault_of, is_hidden, suggest
from shardload.checkpoint.sources.ranges import RangeReader
from shardload.errors import CorruptError, NotFoundError, UsageError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from shardload.checkpoint.sources.digest import Digest
    from shardload.checkpoint.sources.runs import Part

SMALL = 1_000_000
"""Files up to this size, in bytes, are downloaded whole: configs, indexes, code, tokenizers."""


class HubFile:
    """One file of a Hub repo. Parts are read by range requests until the whole file is needed.

    A file of at most `SMALL` bytes is downloaded into the cache at the first read. `path` is its name in the
    repo, `name` its name in the source, without the subfolder. With `copies` nothing comes into the cache.
    """

    def __init__(
        self,
        name: str,
        path: str,
        size: int,
        repo: PinnedRepo,
        digest: Digest | None = None,
        copies: Copies | None = None,
    ) -> None:
        self.name = name
        self._copies = copies
        self._content: bytes | None = None
        self._digest = digest
        self._path = path
        self._size = size
        self._repo = repo
        self._local: LocalFile | None = None
        self._ranges: RangeReader | None = None

    @property
    def size(self) -> int:
        """Size in bytes, as the Hub lists it."""
        return self._size

    @property
    def is_remote(self) -> bool:
        """Whether reads still go over the network, where a small one costs as much as a large one."""
        return self._local is None and self._size > SMALL

    @property
    def is_streamed(self) -> bool:
        """Whether it was asked for that no file comes onto this disk."""
        return self._copies is not None

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer only at its end. Raises typed errors."""
        if self._size <= SMALL and self.is_streamed:
            return self._whole()[offset : offset + length]
        if self._local is None and self._size <= SMALL:
            self.local_path()
        return self._reader.read_at(offset, length)

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fill memory with the bytes from `offset` on, by one request unless the file is on this disk."""
        self._reader.read_into(offset, memory)

    def read_many(self, parts: Iterable[Part]) -> None:
        """Fill each part, (offset, memory), on several connections unless the file is on this disk."""
        self._reader.read_many(parts)

    @property
    def _reader(self) -> LocalFile | RangeReader:
        if self._local is not None:
            return self._local
        if self._ranges is None:
            repo = self._repo
            self._ranges = RangeReader(
                repo.url(self._path), self._size, headers=repo.headers(), asked=repo.asking(self._path)
            )
        return self._ranges

    def local_path(self) -> Path:
        """Download the file into the cache, unless it is there, and return its path. Raises typed errors."""
        if self._copies is not None:
            return self._copies.of(self)
        if self._local is None:
            found = self._repo.download(self._path, quiet=self._size <= SMALL)
            fault = self._fault_of(found)
            if fault is not None:
                found.close()
                self._repo.forget(self._path)  # or every later load would find it
                raise CorruptError(
                    f"the download of {self._path!r} is not the file that the Hub lists: {fault}",
                    where=f"{self._repo.label}/{self._path}",
                    cure="try again: the download was deleted; if that fails, a proxy or the server's file is broken",
                )
            self._local = found
            self._ranges = None
        return self._local.local_path()

    def _whole(self) -> bytes:
        """Fetch a small file into memory, once. Raises CorruptError where it is not what the Hub lists."""
        if self._content is None:
            content = self._reader.read_at(0, self._size)
            if self._digest is not None and self._digest.of(content) != self._digest.hex:
                raise CorruptError(
                    f"{self._path!r} is not the file that the Hub lists: its {self._digest.kind} hash is another",
                    where=f"{self._repo.label}/{self._path}",
                    cure="try again; if that fails, a proxy or the server's file is broken",
                )
            self._content = content
        return self._content

    def _fault_of(self, local: LocalFile) -> str | None:
        """Say what is wrong with a fresh download: its size, the name of its blob, or the hash of a small file."""
        if local.size != self._size:
            return f"it has {local.size:,} bytes, listed are {self._size:,}"
        if self._digest is None:
            return None
        if self._size > SMALL:
            held = self._repo.cached_digest(self._path)
            wrong = held and held.kind == self._digest.kind and held.hex != self._digest.hex
            return f"the server calls it {held and held.hex}" if wrong else None
        actual = self._digest.of(local.read_at(0, self._size))
        return None if actual == self._digest.hex else f"its {self._digest.kind} hash is {actual}"

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._local is not None:
            self._local.close()
        self._local = None
        self._ranges = None

    def __repr__(self) -> str:
        return f"HubFile({self._path!r} of {self._repo.label})"


class HubSource:
    """The files of a Hub repo at one commit. `open_hub` makes it.

    `listing` is what the Hub says about its files, or None when only the cache is used.
    `warnings` says so when the Hub could not be reached and the cache was used instead. Without `disk` what the cache
    lacks is read into memory, and nothing comes into it.
    """

    is_local: Literal[False] = False

    def __init__(
        self,
        repo: PinnedRepo,
        listing: Mapping[str, Listed] | None,
        *,
        subfolder: str | None = None,
        warnings: Sequence[str] = (),
        disk: bool = True,
    ) -> None:
        self._repo = repo
        self._copies = None if disk else Copies(repo.label)
        self.is_streamed = not disk
        self._listing = listing
        self._prefix = f"{subfolder}/" if subfolder else ""
        self.warnings = list(warnings)
        self.label = repo.label
        self.revision = repo.commit
        if subfolder and not self.names():
            folders = {name.rpartition("/")[0] for name in self._all() if "/" in name}
            raise NotFoundError(
                f"the repo has no folder {subfolder!r} with files in it",
                where=self.label,
                cure=suggest(subfolder, sorted(folders)),
            )

    def names(self) -> Sequence[str]:
        """Return the names of all files, sorted; offline, of the cached files."""
        start = len(self._prefix)
        return sorted(name[start:] for name in self._all() if name.startswith(self._prefix))

    def open(self, name: str) -> HubFile | LocalFile:
        """Return the file called `name`, from the cache where it is there; nothing is downloaded yet.

        Raises NotFoundError, UnsafeError, and CorruptError when the cached copy is not as long as the Hub's, or is a
        link to another content.
        """
        check_name(name, self.label)
        path = self._prefix + name
        if self._listing is not None and path not in self._listing:
            raise NotFoundError(
                f"the file {name!r} is not in the repo", where=self.label, cure=suggest(name, self.names())
            )
        size = None if self._listing is None else self._listing[path].size
        cached = self._repo.cached(path)
        if cached is not None:
            listed = None if self._listing is None else self._listing[path].digest
            require_blob(cached, self._repo.cached_digest(path), listed)
            return _of_size(cached, size, self._repo, name)
        if self._listing is None:
            raise NotFoundError(
                f"the file {name!r} is not in the cache, and the Hub is not asked",
                where=str(self._repo.snapshot),
                cure=f"load {self.label} once with the network on; " + suggest(name, self.names()),
            )
        asked = self._repo.ask_size(path) if size is None else size
        return HubFile(name, path, asked, self._repo, self._listing[path].digest, self._copies)

    def digest(self, name: str) -> Digest | None:
        """Return the hash that the Hub's listing gives; offline, the one by which the cache names the file."""
        check_name(name, self.label)
        path = self._prefix + name
        listed = self._listing.get(path) if self._listing is not None else None
        if listed is not None and listed.digest is not None:
            return listed.digest
        return self._repo.cached_digest(path)

    def __repr__(self) -> str:
        return f"HubSource({self.label!r})"

    def _all(self) -> Sequence[str]:
        if self._listing is None:
            return FolderSource(self._repo.snapshot).names()
        return [name for name in self._listing if not is_hidden(name)]


def open_hub(
    repo: str,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
    disk: bool = True,
) -> HubSource:
    """Pin `repo` to the commit that `revision` (by default `main`) leads to, with one request, and list it.

    Offline, and when the Hub can't be reached, the cache answers for the commit it knows; `warnings` says so
    in the second case. Raises UsageError, NotFoundError or AccessError.
    """
    from huggingface_hub import constants

    asked = revision or constants.DEFAULT_REVISION
    if fault_of(asked):
        raise UsageError(f"{asked!r} is not a revision: it {fault_of(asked)}", where=repo)
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        # The HTTP library would show the token in its error.
        raise UsageError(
            Wording("{token} is empty, or holds a character that no token has, such as a space", token=...)
        )
    if subfolder:
        check_name(subfolder, repo)
    if cache_dir is not None and "\0" in os.fsdecode(cache_dir):
        raise UsageError(Wording("{cache_dir} holds a NUL character", cache_dir=...), where=repr(cache_dir))
    cache = expand(cache_dir or constants.HF_HUB_CACHE).absolute()
    if local_files_only or constants.HF_HUB_OFFLINE:
        found = pinned_in_cache(repo, asked, cache, token)
        if found is None:
            reason = keyword("local_files_only", True) if local_files_only else "HF_HUB_OFFLINE is set"
            raise hub_errors.not_cached(repo, asked, cache, Wording("the Hub is not asked ({0})", reason))
        return HubSource(found, None, subfolder=subfolder)
    try:
        commit, listing = _listing(repo, asked, token)
    except hub_errors.client_errors() as error:
        fault = hub_errors.from_client(error, hub_errors.Asked(repo, asked, has_token=has_token(token)))
        found = pinned_in_cache(repo, asked, cache, token) if hub_errors.is_unreachable(error) else None
        if found is None:
            raise fault from error
        warning = f"{fault.what}; the files that the cache holds of commit {found.commit} are used"
        return HubSource(found, None, subfolder=subfolder, warnings=[warning])
    unsafe = [name for name in listing if fault_of(name)]
    warnings = [
        f"the repo lists the file name {name!r}, which {fault_of(name)}; it is left out" for name in unsafe
    ]
    safe = {name: listed for name, listed in listing.items() if name not in unsafe}
    return HubSource(
        PinnedRepo(repo, commit, asked, cache, token), safe, subfolder=subfolder, warnings=warnings, disk=disk
    )


def _listing(repo: str, revision: str, token: str | bool | None) -> tuple[str, dict[str, Listed]]:
    """Ask for the listing; where a kept connection turns out to be broken, ask again over a new one."""
    try:
        return ask_listing(repo, revision, token)
    except hub_errors.client_errors() as error:
        if not hub_errors.is_broken_connection(error):
            raise
        return ask_listing(repo, revision, token)


def _of_size(file: LocalFile, size: int | None, repo: PinnedRepo, name: str | None = None) -> LocalFile:
    if size is not None and file.size != size:
        file.close()
        raise CorruptError(
            f"the cached copy of {file.name!r} has {file.size} bytes; the Hub's listing says {size}",
            where=str(file.local_path()),
            cure=f"delete that file and the blob that it links to, then load {repo.label} again",
        )
    file.name = name or file.name
    return file
