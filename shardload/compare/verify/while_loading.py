"""VerifiedWhileLoading: hashes a checkpoint's files during the load, in the same pass over the disk."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shardload.compare.verify.hashing import hash_file
from shardload.compare.verify.manifest import MANIFEST, read_manifest
from shardload.compare.verify.report import FileVerdict, Verification, refuse_changed
from shardload.errors import UsageError, Wording

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.checkpoint.sources.digest import Digest
    from shardload.compare.verify.report import Status

_THREADS = 2


class VerifiedWhileLoading:
    """Hashes each weight file as soon as it is local; the end of the `with` block waits for the results.

    The bytes pass through the page cache once, for the hash and for the model. Raises UsageError at the start when a
    weight file has no known hash, and CorruptError with `.report` at the end when a hash differs; the load around it
    then restores the model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        source = checkpoint.source
        manifest = read_manifest(source)
        self._expected: dict[str, list[Digest]] = {
            shard.name: [d for d in (source.digest(shard.name), manifest.get(shard.name)) if d is not None]
            for shard in checkpoint.shards
        }
        unknown = [name for name, digests in self._expected.items() if not digests]
        if unknown:
            raise UsageError(
                Wording(
                    "{verify}, and the hash of {0} of {1} weight files is not known",
                    len(unknown),
                    len(self._expected),
                    verify=True,
                ),
                where=f"{checkpoint.label}: {', '.join(unknown[:8])}",
                cure=f"write a {MANIFEST} file into the folder (sha256sum *.safetensors > {MANIFEST}), or load from "
                "the Hub, whose listing and cache know the hashes",
            )
        self._pool = ThreadPoolExecutor(_THREADS)
        self._jobs: dict[str, Future[str]] = {}
        self._sizes: dict[str, int] = {}
        self._stopped = threading.Event()

    def begin(self, name: str, path: Path) -> None:
        """Start to hash a weight file that is on this disk."""
        if name in self._jobs:
            return
        identity = self._checkpoint.identities.get(name)
        self._sizes[name] = path.stat().st_size
        self._jobs[name] = self._pool.submit(
            hash_file, path, self._expected[name], identity, self._stopped.is_set
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopped.set()
            self._pool.shutdown(cancel_futures=True)
            return
        with self._pool:
            for shard in self._checkpoint.shards:  # also those that the model takes nothing from
                self.begin(shard.name, self._checkpoint.source.open(shard.name).local_path())
            self._judge()

    def _judge(self) -> None:
        files = []
        for name, job in self._jobs.items():
            detail = job.result()
            by = tuple(digest.by for digest in self._expected[name])
            status: Status = "changed" if detail else "ok"
            files.append(FileVerdict(name, self._sizes[name], status, by, detail, shard=True))
        source = self._checkpoint.source
        refuse_changed(
            Verification(self._checkpoint.label, source.revision, self._checkpoint.format, files=files)
        )
