"""A Hub repo at one commit: asking the Hub about it, its place in the cache, and downloads into that."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload._system.file_errors import is_absent, unreadable
from shardload.checkpoint.sources import ranges
from shardload.checkpoint.sources.digest import Digest
from shardload.checkpoint.sources.folder import FolderSource, LocalFile, mode_of
from shardload.checkpoint.sources.hub_errors import Asked, client_errors, from_client, may_pass
from shardload.checkpoint.sources.names import is_commit
from shardload.errors import CorruptError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BARS = "huggingface_hub.http_get"


@dataclass(frozen=True)
class PinnedRepo:
    """A repo at one commit, and how to reach it. `asked` is the branch, tag or commit that led there."""

    repo: str
    commit: str
    asked: str
    cache: Path
    token: str | bool | None = None

    @property
    def label(self) -> str:
        """`org/name@commit`."""
        return f"{self.repo}@{self.commit}"

    @property
    def snapshot(self) -> Path:
        """The folder in the cache that holds this commit's files, once there are any."""
        return _cache_folder(self.cache, self.repo) / "snapshots" / self.commit

    def asking(self, file: str) -> Asked:
        """Return the request for `file`, as errors describe it."""
        return Asked(self.repo, self.commit, file, has_token(self.token))

    def url(self, file: str) -> str:
        """Return the address of `file`."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, file, revision=self.commit)

    def headers(self) -> dict[str, str]:
        """Return the request headers, the caller's token among them."""
        return dict(_client().build_hf_headers(token=self.token, library_name="shardload"))

    def cached(self, file: str) -> LocalFile | None:
        """Return `file` from the cache, or None when it isn't there."""
        if not stat.S_ISREG(mode_of(self.snapshot / file)):
            return None
        self._remember()
        return FolderSource(self.snapshot).open(file)

    def cached_digest(self, file: str) -> Digest | None:
        """Return the hash by which the cache names `file`, or None."""
        return FolderSource(self.snapshot).digest(file) if stat.S_ISDIR(mode_of(self.snapshot)) else None

    def download(self, file: str, *, quiet: bool) -> LocalFile:
        """Fetch `file` into the cache with the client, which resumes and locks. Raises typed errors."""
        with _no_bars() if quiet else nullcontext():
            self._fetch(file)
        found = self.cached(file)
        if found is None:
            raise NotFoundError(f"the download of {file!r} is not in the cache", where=str(self.snapshot))
        return found

    def _fetch(self, file: str) -> None:
        """Have the client fetch `file`; one that gives up at the first fault is told to go on."""
        from huggingface_hub import hf_hub_download

        delays = () if ranges.client_retries() else ranges.RETRY_DELAYS
        failures = 0
        while True:
            before = self._kept_parts()
            try:
                hf_hub_download(
                    self.repo,
                    file,
                    revision=self.commit,
                    cache_dir=self.cache,
                    token=self.token,
                    library_name="shardload",
                )
                return
            except client_errors() as error:
                failures = 0 if self._kept_parts() > before else failures
                if failures >= len(delays) or not may_pass(error):
                    raise from_client(error, self.asking(file)) from error
            time.sleep(delays[failures])
            failures += 1

    def _kept_parts(self) -> int:
        """Return how many bytes of unfinished downloads the cache keeps: the client goes on after them."""
        blobs = _cache_folder(self.cache, self.repo) / "blobs"
        with suppress(OSError):  # another process may finish one meanwhile
            return sum(part.stat().st_size for part in blobs.glob("*.incomplete"))
        return 0

    def forget(self, file: str) -> None:
        """Delete a file with wrong content from the cache: its link and its blob."""
        link = self.snapshot / file
        with suppress(OSError):
            blob = link.resolve()
            link.unlink()
            if blob.parent == (_cache_folder(self.cache, self.repo) / "blobs").resolve():
                blob.unlink()

    def ask_size(self, file: str) -> int:
        """Return the size of `file` in bytes from its own headers, for a Hub that doesn't list sizes."""
        from huggingface_hub import constants, get_hf_file_metadata

        try:
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            size = get_hf_file_metadata(self.url(file), token=self.token, timeout=timeout).size
        except client_errors() as error:
            raise from_client(error, self.asking(file)) from error
        if size is None:
            raise CorruptError(f"the Hub does not say how long {file!r} is", where=self.label)
        return size

    def _remember(self) -> None:
        """Note in the cache which commit the branch led to: the client does so when it is given a branch."""
        ref = _cache_folder(self.cache, self.repo) / "refs" / self.asked
        if self.asked == self.commit:
            return
        with suppress(OSError):  # a read-only cache still serves its files
            if ref.is_file() and ref.read_text() == self.commit:
                return
            ref.parent.mkdir(parents=True, exist_ok=True)
            fd, temporary = tempfile.mkstemp(dir=ref.parent)
            with os.fdopen(fd, "w") as out:
                out.write(self.commit)
            Path(temporary).replace(ref)


@dataclass(frozen=True, slots=True)
class Listed:
    """What the Hub's listing says about a file: its size in bytes and its hash, each None where it does not say."""

    size: int | None
    digest: Digest | None = None

    @classmethod
    def of(cls, file: Any) -> Listed:
        """Read an entry of the client's listing. A large file's id is its pointer's; its own hash is beside it."""
        large = getattr(file, "lfs", None)
        name = getattr(large, "sha256", None) if large else getattr(file, "blob_id", None)
        digest = Digest.of_blob_name(name, "the Hub's listing") if isinstance(name, str) else None
        return cls(file.size, digest)


def ask_listing(repo: str, revision: str, token: str | bool | None) -> tuple[str, dict[str, Listed]]:
    """Return the commit that `revision` leads to, and the size and hash of each file, with one request.

    Raises what the client raises, and CorruptError when the answer names no commit.
    """
    from huggingface_hub import HfApi, constants

    # The client itself sets no time limit on this call.
    info: Any = HfApi(library_name="shardload").model_info(
        repo, revision=revision, files_metadata=True, token=token, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    if not isinstance(info.sha, str) or not is_commit(info.sha):
        raise CorruptError(
            f"the Hub names no commit for {repo!r} at {revision!r}, but {info.sha!r}", where=repo
        )
    return info.sha, {file.rfilename: Listed.of(file) for file in info.siblings or ()}


def pinned_in_cache(repo: str, revision: str, cache: Path, token: str | bool | None) -> PinnedRepo | None:
    """Return the repo at the commit that the cache knows for `revision`; None when it holds no file of it."""
    commit = revision
    if not is_commit(revision):
        try:
            commit = (_cache_folder(cache, repo) / "refs" / revision).read_text().strip()
        except UnicodeDecodeError:
            return None
        except OSError as error:
            if is_absent(error):
                return None
            raise unreadable(Path(error.filename or cache), error) from error
    pinned = PinnedRepo(repo, commit, revision, cache, token)
    return pinned if is_commit(commit) and stat.S_ISDIR(mode_of(pinned.snapshot)) else None


def has_token(token: str | bool | None) -> bool:
    """Whether requests carry a token: the caller's own, or the one that this machine is logged in with."""
    from huggingface_hub import get_token

    return isinstance(token, str) or (token is not False and get_token() is not None)


def _cache_folder(cache: Path, repo: str) -> Path:
    return cache / ("models--" + repo.replace("/", "--"))


def _client() -> Any:
    """Return huggingface_hub.utils, whose type hints leave out what it re-exports."""
    from huggingface_hub import utils

    return utils


@contextmanager
def _no_bars() -> Iterator[None]:
    """Silence the client's progress bars for a small file, unless the environment decides about them."""
    from huggingface_hub import constants

    client = _client()
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or client.are_progress_bars_disabled(_BARS):
        yield
        return
    client.disable_progress_bars(_BARS)
    try:
        yield
    finally:
        client.enable_progress_bars(_BARS)
