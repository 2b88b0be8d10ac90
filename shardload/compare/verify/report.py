"""Verification: the result of comparing files with hashes and of looking at their values."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from shlex import quote
from typing import Any, Literal

from shardload.errors import CorruptError, Cures, Wording

Status = Literal["ok", "changed", "unknown", "absent"]
"""ok: every known hash matches. changed: one does not. unknown: no hash is known. absent: the file is not here."""


@dataclass(frozen=True)
class FileVerdict:
    """A file, its size in bytes, and whether its bytes match the known hashes; `shard` is True for a weight file."""

    name: str
    size: int
    status: Status
    by: tuple[str, ...] = ()
    detail: str = ""
    shard: bool = False


@dataclass(frozen=True)
class ValueFinding:
    """Odd values in a tensor: `count` of its `numel` elements. For a zero tail both are bytes."""

    tensor: str
    shard: str
    kind: Literal["NaN", "Inf", "all zero", "zero tail"]
    count: int
    numel: int


@dataclass
class Verification:
    """What `verify` found; `ok` when every weight file matches a known hash and no value looks odd.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> result = shardload.verify("tiny")
        >>> result.ok, result.unverified  # no hash of this file is known
        (False, ['model.safetensors'])

    `files` has one verdict for each file, `values` one finding for each odd tensor, `seconds` is the time for hashing.
    """

    where: str
    revision: str | None
    structure: str
    files: list[FileVerdict] = field(default_factory=list)
    values: list[ValueFinding] = field(default_factory=list)
    screened: bool = False
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the files that were hashed."""
        return sum(file.size for file in self.files if file.status in {"ok", "changed"})

    @property
    def unverified(self) -> list[str]:
        """The weight files that have no known hash or are absent."""
        return [file.name for file in self.files if file.shard and file.status in {"unknown", "absent"}]

    @property
    def ok(self) -> bool:
        """Whether every weight file was verified, no file differs and, where values were screened, none is odd."""
        changed = any(file.status == "changed" for file in self.files)
        return not changed and not self.unverified and not self.values

    @property
    def cure(self) -> str | None:
        """What to do about weight files that were not verified; None where all were.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> shardload.verify("tiny").cure.partition(";")[0]
        'pass sums=…, a file of SHA-256 sums and names from who made the files'
        """
        if any(file.shard and file.status == "absent" for file in self.files):
            return "download the files that are not here: load the checkpoint once"
        if not self.unverified:
            return None
        given = Wording("pass {sums}, a file of SHA-256 sums and names from who made the files", sums=...)
        if self.revision is not None:
            return given
        names = self.unverified
        folder = self.where.removesuffix(f"/{names[0]}")
        return Cures(
            given,
            "keep the sums of today, to notice later changes: "
            f"(cd {quote(folder)} && sha256sum {' '.join(map(quote, names))} >> SHA256SUMS)",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> shardload.verify("tiny").to_dict()["files"][0]["status"]
        'unknown'
        """
        return {
            "where": self.where,
            "revision": self.revision,
            "ok": self.ok,
            "structure": self.structure,
            "files": [asdict(file) for file in self.files],
            "values": [asdict(finding) for finding in self.values],
            "values_screened": self.screened,
            "nbytes": self.nbytes,
            "seconds": self.seconds,
            "cure": self.cure,
        }

    def __str__(self) -> str:
        counts = Counter(file.status for file in self.files)
        return f"{self.where}: {self.structure}; files " + ", ".join(f"{k} {v}" for k, v in counts.items())


def refuse_changed(report: Verification, cause: Exception | None = None) -> None:
    """Raise CorruptError, with the report, when the bytes of a file do not match its hash."""
    changed = [file for file in report.files if file.status == "changed"]
    if not changed:
        return
    shown = "\n    ".join(f"{file.name}: {file.detail}" for file in changed[:8])
    more = f"\n    and {len(changed) - 8} more" if len(changed) > 8 else ""
    error = CorruptError(
        f"{len(changed)} of {len(report.files)} files do not match their hashes",
        where=f"{report.where}\n    {shown}{more}",
        cure="fetch these files again; if they still differ, the hashes belong to another revision",
    )
    error.report = report
    raise error from cause
