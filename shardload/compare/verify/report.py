"""Verification: what was held against which hash, and what was seen in the values."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from shardload.errors import CorruptError

Status = Literal["ok", "changed", "unknown", "absent"]
"""ok: every known hash fits. changed: one does not. unknown: nobody says what it should be. absent: not at hand."""


@dataclass(frozen=True)
class FileVerdict:
    """A file, its size in bytes, and how it stood against its hashes; `shard` says that it holds weights."""

    name: str
    size: int
    status: Status
    by: tuple[str, ...] = ()
    detail: str = ""
    shard: bool = False


@dataclass(frozen=True)
class ValueFinding:
    """Something odd in a tensor's numbers; `count` of its `numel` elements (for tails: bytes)."""

    tensor: str
    shard: str
    kind: Literal["NaN", "Inf", "all zero", "zero tail"]
    count: int
    numel: int


@dataclass
class Verification:
    """What `verify` found; `ok` when every weight file has a known hash that fits and no value looks odd.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> result = shardload.verify("tiny")
        >>> result.ok, result.unverified  # nobody knows the hash of this file
        (False, ['model.safetensors'])

    `files` has a verdict a file, `values` a line for each tensor that looks odd, `seconds` the time of the hashing.
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
        """Bytes of the files that were hashed, in `seconds`."""
        return sum(file.size for file in self.files if file.status in {"ok", "changed"})

    @property
    def unverified(self) -> list[str]:
        """The weight files for which no hash is known, or that are not at hand."""
        return [file.name for file in self.files if file.shard and file.status in {"unknown", "absent"}]

    @property
    def ok(self) -> bool:
        """Whether every weight file was verified, no file differs, and (where it was looked at) no value is odd."""
        changed = any(file.status == "changed" for file in self.files)
        return not changed and not self.unverified and not self.values

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
        }

    def __str__(self) -> str:
        counts = Counter(file.status for file in self.files)
        return f"{self.where}: {self.structure}; files " + ", ".join(f"{k} {v}" for k, v in counts.items())


def refuse_changed(report: Verification, cause: Exception | None = None) -> None:
    """Raise CorruptError, with the report, when any file's bytes are not those of its hash."""
    changed = [file for file in report.files if file.status == "changed"]
    if not changed:
        return
    shown = "\n    ".join(f"{file.name}: {file.detail}" for file in changed[:8])
    more = f"\n    and {len(changed) - 8} more" if len(changed) > 8 else ""
    error = CorruptError(
        f"{len(changed)} of {len(report.files)} files are not what their hashes say",
        where=f"{report.where}\n    {shown}{more}",
        cure="fetch these files again; if they stay so, what they are held against belongs to another revision",
    )
    error.report = report
    raise error from cause
