"""Hashes files at the speed of the disk: streamed, several at a time, never whole in memory."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shardload._system.file_errors import unreadable
from shardload._system.file_identity import file_identity
from shardload.compare.verify.report import FileVerdict
from shardload.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from shardload._system.file_identity import FileIdentity
    from shardload._system.progress import ProgressMeter
    from shardload.checkpoint.sources.digest import Digest
    from shardload.checkpoint.sources.source import Source
    from shardload.compare.verify.report import Status

_PIECE = 4 * 2**20
THREADS = min(4, os.cpu_count() or 1)
"""hashlib releases the GIL; a thread hashes 1 to 2 GB a second where the processor has SHA instructions."""


def hash_files(
    source: Source,
    expected: dict[str, list[Digest]],
    shards: frozenset[str],
    identities: Mapping[str, FileIdentity],
    meter: ProgressMeter,
) -> list[FileVerdict]:
    """Hash every file with a known digest, several at once, and return a verdict for each file of `expected`."""
    verdicts = []
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = {}
        for name, digests in expected.items():
            file = source.open(name)
            if digests:
                job = pool.submit(hash_file, file.local_path(), digests, identities.get(name))
                waiting[name] = (file.size, job)
            else:
                verdicts.append(FileVerdict(name, file.size, "unknown", shard=name in shards))
        for name, (size, job) in waiting.items():
            meter.shard(name)
            detail = job.result()
            by = tuple(digest.by for digest in expected[name])
            status: Status = "changed" if detail else "ok"
            verdicts.append(FileVerdict(name, size, status, by, detail, shard=name in shards))
            meter.tensor(size)
    return verdicts


def hash_file(
    path: Path,
    digests: Sequence[Digest],
    identity: FileIdentity | None = None,
    stop: Callable[[], bool] | None = None,
) -> str:
    """Read a file once; return "" when it has all these digests, else a text with the expected and the found ones.

    Raises CorruptError when the file's identity is not `identity` or changes during the read; OSError. When `stop`
    returns True, the read ends early, because the result is no longer needed.
    """
    try:
        opened = path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from error
    with opened as file:
        before = file_identity(file.fileno())
        if identity is not None and before != identity:
            raise _changed(path, "since its header was read")
        hashes = {digest.kind: _new(digest, before[1]) for digest in digests}
        piece = bytearray(min(_PIECE, before[1] or 1))
        view = memoryview(piece)
        while count := file.readinto(piece):
            for running in hashes.values():
                running.update(view[:count])
            if stop is not None and stop():
                return ""
        if file_identity(file.fileno()) != before:
            raise _changed(path, "while it was read")
    wrong = [d for d in digests if hashes[d.kind].hexdigest() != d.hex]
    return "; ".join(
        f"{d.by} says {d.kind} {d.hex}, the bytes have {hashes[d.kind].hexdigest()}" for d in wrong
    )


def _new(digest: Digest, size: int) -> hashlib._Hash:
    if digest.kind == "sha256":
        return hashlib.sha256()
    # Git hashes a file's bytes after this header.
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def _changed(path: Path, when: str) -> CorruptError:
    return CorruptError(
        f"{path.name} was changed {when}", where=str(path), cure="open it again when no program writes to it"
    )
