"""MergeReport: what a merge changed, how much of each delta survived the rounding, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardload._system.process_memory import size_of
from shardload.errors import printable
from shardload.keys import group_keys

if TYPE_CHECKING:
    from shardload.adapters.adapter_report import AdapterReport
    from shardload.adapters.merging.survival import MergedTensor
    from shardload.writing import DiskRoom, Written


@dataclass
class MergeReport:
    """How adapters were merged. `str()` is for people, `to_dict()` for JSON.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"], init=False, seed=0)
        >>> merged = shardload.merge(model, keep_copies=True)
        >>> merged.adapters, [row.name for row in merged.tensors], merged.copied_bytes
        (['default'], ['0.weight'], 32)

    `tensors` has a row for every tensor that was changed. On disk, `written` says what was written and `room` what
    was asked for before; in memory, `copied_bytes` is what is kept besides, to unmerge exactly.
    """

    base: str
    adapters: list[str]
    dtype: str
    rounding: str = "nearest"
    tensors: list[MergedTensor] = field(default_factory=list)
    adapter_reports: list[AdapterReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    written: Written | None = None
    room: DiskRoom | None = None
    copied_bytes: int = 0
    peak_anon: int = 0
    seconds: float = 0.0

    @property
    def least_share(self) -> float | None:
        """The smallest share of a delta that survived the rounding; None when no delta was added."""
        return min((row.share for row in self.tensors if row.share is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"], init=False, seed=0)
        >>> shardload.merge(model, keep_copies=True).to_dict()["dtype"]
        'dtypes of the base'
        """
        return {
            "base": self.base,
            "adapters": self.adapters,
            "dtype": self.dtype,
            "rounding": self.rounding,
            "least_share": self.least_share,
            "tensors": [row.to_dict() for row in self.tensors],
            "adapter_reports": [report.to_dict() for report in self.adapter_reports],
            "warnings": self.warnings,
            "written": None if self.written is None else self.written.to_dict(),
            "room": None if self.room is None else self.room.to_dict(),
            "copied_bytes": self.copied_bytes,
            "peak_anon": self.peak_anon,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        """Return the report for people: what was merged, the least share, where it lies, warnings."""
        names = ", ".join(printable(name) for name in self.adapters)
        lines = [f"merged {names} into {printable(self.base)}"]
        lines.append(f"  changed      {self._changed()}")
        lines += [f"    {line}" for line in self._templates()]
        if self.written is not None:
            lines.append(f"  wrote        {self._wrote()}")
            if self.written.resumed:
                lines.append(
                    f"  went on      {len(self.written.resumed)} shards were complete from an earlier run"
                )
        if self.copied_bytes:
            lines.append(f"  keeps        {size_of(self.copied_bytes)} of the base, to unmerge exactly")
        lines += [f"  warning      {printable(warning)}" for warning in self.warnings]
        return "\n".join(lines)

    def _changed(self) -> str:
        share = self.least_share
        survived = "" if share is None else f"; at least {share:.1%} of each delta survived the rounding"
        how = "" if self.rounding == "nearest" else f", {self.rounding} rounding"
        return f"{len(self.tensors)} tensors, {self.dtype}{how}, in {self.seconds:.2f} s{survived}"

    def _templates(self) -> list[str]:
        rows = {row.name: row for row in self.tensors}
        lines = []
        for group in group_keys(dict.fromkeys(rows)):
            shares = [s for name in group.keys if (s := rows[name].share) is not None]
            text = f"{min(shares):.1%} to {max(shares):.1%}" if shares else "replaced"
            lines.append(f"{printable(group.pattern)}  {text}")
        return lines

    def _wrote(self) -> str:
        if self.written is None:
            return ""
        sizes = ", ".join(f"{size_of(count)} {kind}" for kind, count in self.written.nbytes.items())
        checked = ", read back and compared" if self.written.verified else ""
        return f"{printable(str(self.written.folder))}: {len(self.written.files)} files, {sizes}{checked}"
