"""verify: compares a checkpoint's files with known hashes and, on request, looks for odd values."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shardload._system.progress import ProgressMeter
from shardload.checkpoint.checkpoint import read_checkpoint
from shardload.checkpoint.index import find_weight_files
from shardload.checkpoint.sources import LocalFile, find_source
from shardload.compare.verify.hashing import hash_files
from shardload.compare.verify.manifest import MANIFEST, read_manifest
from shardload.compare.verify.report import FileVerdict, ValueFinding, Verification, refuse_changed
from shardload.compare.verify.while_loading import VerifiedWhileLoading
from shardload.errors import CorruptError, NotFoundError, UnsupportedError
from shardload.keywords import entry_point, place_of

if TYPE_CHECKING:
    import os

    from typing_extensions import Unpack

    from shardload._system.progress import ProgressOption
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.checkpoint.sources.digest import Digest
    from shardload.checkpoint.sources.source import Source
    from shardload.errors import ShardloadError
    from shardload.keywords import WhereKeywords
    from shardload.where import Where, WhereLike

__all__ = ["FileVerdict", "ValueFinding", "Verification", "VerifiedWhileLoading", "verify"]


@entry_point
def verify(
    where: WhereLike,
    *,
    sums: str | os.PathLike[str] | None = None,
    values: bool = False,
    progress: ProgressOption = None,
    **keywords: Unpack[WhereKeywords],
) -> Verification:
    """Verify a checkpoint: first its structure, then every byte of its files against known hashes.

        >>> import hashlib
        >>> import torch, shardload
        >>> (file,) = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> digest = hashlib.sha256(file.read_bytes()).hexdigest()
        >>> size = file.with_name("SHA256SUMS").write_text(f"{digest}  {file.name}")
        >>> shardload.verify("tiny").ok
        True

    Hashes come from the Hub's listing, from the names of the blobs in the Hub's cache, and from a SHA256SUMS file: the
    one in the folder, or `sums`. For a Hub repo the files in the cache are read; missing ones are reported and not
    downloaded. `values` also looks for NaN, Inf, matrices of zeros and tails of zeros. The other keywords are those of
    `open_checkpoint`.

    Raises CorruptError with `.report` (the Verification) where bytes differ from their hash, CorruptError for a broken
    structure or SHA256SUMS file, NotFoundError. A file without a known hash is `unknown` in the result.
    """
    place = place_of(where, keywords)
    source, only = find_source(place)
    checkpoint, broken = _structure(source, only, place)
    label, shards, identities = source.label, frozenset[str](), {}
    structure = "broken"
    if checkpoint is not None:
        label, identities = checkpoint.label, dict(checkpoint.identities)
        shards = frozenset(shard.name for shard in checkpoint.shards)
        structure = f"{checkpoint.format}, {len(checkpoint.tensors):,} tensors in {len(shards)} shards"
    expected, absent = _expectations(source, shards, read_manifest(source, sums))
    report = Verification(label, source.revision, structure)
    report.files += [FileVerdict(name, 0, "absent", shard=name in shards) for name in sorted(absent)]
    screened = checkpoint if values and not absent & shards else None
    total = sum(source.open(name).size for name in expected) + (screened.nbytes if screened else 0)
    with ProgressMeter(progress, total, "verifying") as meter:
        started = time.perf_counter()
        report.files += hash_files(source, expected, shards, identities, meter)
        report.seconds = time.perf_counter() - started
        if screened is not None:
            from shardload.compare.verify.values import screen_values  # it needs torch

            report.values = screen_values(screened, meter)
    report.files.sort(key=lambda file: file.name)
    report.screened = screened is not None
    refuse_changed(report, broken)
    if broken is not None:
        raise broken
    return report


def _structure(
    source: Source, only: str | None, place: Where
) -> tuple[Checkpoint | None, ShardloadError | None]:
    """Return the checkpoint, or the error in its structure; a hash that differs is reported instead of that error."""
    try:
        files = find_weight_files(source, only=only, variant=place.variant)
        return read_checkpoint(source, files, named=only, place=place), None
    except (CorruptError, NotFoundError, UnsupportedError) as error:
        return None, error


def _expectations(
    source: Source, shards: frozenset[str], manifest: dict[str, Digest]
) -> tuple[dict[str, list[Digest]], frozenset[str]]:
    """Return the known digests of each local file, an empty list where there is none, and the missing files."""
    there = frozenset(source.names())
    expected: dict[str, list[Digest]] = {}
    absent = set()
    for name in sorted({*there, *shards, *manifest} - {MANIFEST}):
        if name not in there or not isinstance(source.open(name), LocalFile):
            absent.add(name)
            continue
        known = source.digest(name)
        expected[name] = [digest for digest in (known, manifest.get(name)) if digest is not None]
    return expected, frozenset(absent)
