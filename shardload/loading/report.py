"""Report: tells what was loaded and from where, what was not loaded, and how much time and memory that took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardload._system.process_memory import size_of
from shardload.errors import joined, plain_keywords, printable
from shardload.keys import group_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload._system.process_memory import Memory
    from shardload.diagnosis.finding import Finding
    from shardload.keymap import KeyMap
    from shardload.loading.fault import Fault
    from shardload.loading.memory_plan import MemoryPlan
    from shardload.placement.device_map import DeviceRow

_MOST_LINES = 12  # patterns per kind of fault; the others are only counted
_FEW_LINES = 4  # the same limit when a finding explains the faults


@dataclass(frozen=True)
class ShardRow:
    """One shard of a load: its tensors, bytes and seconds, and the memory of the process after it, in bytes."""

    name: str
    tensors: int
    nbytes: int
    seconds: float
    anon_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class MemoryUse:
    """Resident memory before and after a load, and the highest sample while it ran."""

    before: Memory
    after: Memory
    peak: Memory

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return the three measurements, in bytes."""
        return {name: getattr(self, name).to_dict() for name in ("before", "after", "peak")}


@dataclass
class Report:
    """How a model was (or would be) loaded.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> report = shardload.fill(torch.nn.Linear(4, 2), shardload.open_checkpoint("tiny"))
        >>> report.ok, report.loaded, report.nbytes, report.dtypes
        (True, 2, 40, {'float32': 2})

    `faults` stop a strict load; `allowed` are faults that the caller or the class permits, by reason. `notes` are
    remarks that are not faults. `key_map` is a key map that cures faults; it was tried on the headers. `cure` says
    every step that a load needs, with its keyword arguments. `nbytes` counts stored bytes; `seconds` has one figure per
    stage. `packing` names how weights that were dequantised are packed in the files. `adapters` are AdapterReports.
    `parts` has the SHA-256 of the installed transformers' files that ran beside a repo's code until the end of the
    load, by their modules. `devices` are rows of what lies where, for a device map. `str()` returns a text for people.
    """

    where: str
    revision: str | None = None
    format: str = ""
    class_name: str = ""
    class_from: str = ""
    config_from: str = ""
    remote_base: str | None = None
    parts: dict[str, str] = field(default_factory=dict)
    shards: list[ShardRow] = field(default_factory=list)
    loaded: int = 0
    nbytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    allowed: dict[str, list[Fault]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    key_map: KeyMap | None = None
    cure: str | None = None
    notes: list[str] = field(default_factory=list)
    stated: MemoryPlan | None = None
    memory: MemoryUse | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    adapters: list[Any] = field(default_factory=list)
    devices: list[DeviceRow] = field(default_factory=list)
    packing: str = ""

    @property
    def ok(self) -> bool:
        """Whether a strict load succeeds: there are no faults."""
        return not self.faults

    @property
    def left_out(self) -> list[Fault]:
        """The faults that were allowed: what the model has and the checkpoint lacks, and the other way round."""
        return [fault for faults in self.allowed.values() for fault in faults]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data; bytes and seconds are plain numbers.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> report = shardload.check(torch.nn.Linear(5, 2), shardload.open_checkpoint("tiny"))
        >>> report.to_dict()["faults"][0]["stored_shape"]
        (2, 4)
        """
        plain = (
            "where", "revision", "format", "packing", "class_name", "class_from", "config_from", "remote_base"
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in plain},
            "parts": [{"module": module, "sha256": sha256} for module, sha256 in self.parts.items()],
            "ok": self.ok,
            "loaded": self.loaded,
            "nbytes": self.nbytes,
            "dtypes": self.dtypes,
            "shards": [vars(row) for row in self.shards],
            "faults": [fault.to_dict() for fault in self.faults],
            "allowed": {reason: [fault.key for fault in faults] for reason, faults in self.allowed.items()},
            "findings": [finding.to_dict() for finding in self.findings],
            "key_map": [rule.to_dict() for rule in self.key_map.rules] if self.key_map else None,
            "cure": self.cure,
            "keywords": plain_keywords(self.cure),
            "notes": self.notes,
            "stated": self.stated.to_dict() if self.stated else None,
            "memory": self.memory.to_dict() if self.memory else None,
            "seconds": self.seconds,
            "adapters": [adapter.to_dict() for adapter in self.adapters],
            "devices": [row.to_dict() for row in self.devices],
        }

    def __str__(self) -> str:
        lines = [printable(f"{self.where}: {self.class_name or 'model'}")]
        lines += [f"  {name:<7} {printable(value)}" for name, value in self._origins() if value]
        if self.shards:
            lines += self._shard_lines()
        if self.memory:
            before, after, peak = self.memory.before, self.memory.after, self.memory.peak
            added, most = size_of(after.anon - before.anon), size_of(peak.anon - before.anon)
            stated = f", {size_of(self.stated.peak)} stated before" if self.stated else ""
            lines.append(
                f"  memory  anonymous {added} added (peak {most}{stated}), "
                f"file-backed {size_of(after.file - before.file)} added"
            )
        if self.seconds:
            lines.append(
                "  time    " + ", ".join(f"{name} {value:.2f} s" for name, value in self.seconds.items())
            )
        lines += [f"  device  {row}" for row in self.devices]
        lines += [f"  note    {printable(note)}" for note in self.notes]
        lines += [f"  allowed {printable(line)}" for line in self._allowed_lines()]
        lines += [str(adapter) for adapter in self.adapters]
        if self.faults:
            lines += ["", fault_text(self.faults, self.findings)]
        return "\n".join(lines)

    def _origins(self) -> list[tuple[str, str]]:
        base = {
            "shim": "shardload's own stand-in for transformers",
            "parts": "shardload's own stand-in, with parts of the installed transformers"
            + (f" ({len(self.parts)} of its files)" if self.parts else ""),
            "transformers": "the installed transformers",
        }.get(self.remote_base or "", "")
        return [
            ("config", self.config_from),
            ("class", self.class_from),
            ("base", base),
            ("format", self.format),
        ]

    def _shard_lines(self) -> list[str]:
        names = [printable(row.name) for row in self.shards]
        width = max(map(len, names))
        lines = [
            f"  {name:<{width}}  {row.tensors:>6} tensors  {size_of(row.nbytes):>10}  {row.seconds:7.3f} s"
            for name, row in zip(names, self.shards, strict=True)
        ]
        dtypes = ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
        seconds = sum(row.seconds for row in self.shards)
        total = f"{self.loaded} tensors ({dtypes}), {size_of(self.nbytes)} in {seconds:.3f} s"
        return [*lines, f"  loaded  {total}"]

    def _allowed_lines(self) -> list[str]:
        return [
            f"{faults[0].kind}: {group.pattern} (by {reason})"
            for reason, faults in self.allowed.items()
            for group in group_keys({fault.key: fault.kind for fault in faults})
        ]


def headline(faults: Sequence[Fault]) -> str:
    """Return the number of faults of each kind: "3 missing, 2 unexpected, 1 misshapen"."""
    kinds = [fault.kind for fault in faults]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def fault_text(faults: Sequence[Fault], findings: Sequence[Finding] = ()) -> str:
    """Return faults grouped by template, with exact index ranges, shapes and shards; findings and cures first."""
    lines: list[str] = []
    if findings:
        # Imported here: a load without faults needs none of the thirty files of the diagnosis.
        from shardload.diagnosis.finding_text import finding_lines

        lines += [*finding_lines(findings), ""]
    # Faults that a finding cures are not listed at length.
    most = _FEW_LINES if any(finding.key_map for finding in findings) else _MOST_LINES
    titles = {
        "misshapen": "misshapen (other shape in the checkpoint than in the model)",
        "missing": "missing (in the model, not in the checkpoint)",
        "unexpected": "unexpected (in the checkpoint, not in the model)",
        "refused": "refused",
    }
    for kind, title in titles.items():
        of_kind = {fault.key: fault for fault in faults if fault.kind == kind}
        if not of_kind:
            continue
        lines.append(f"{title}: {len(of_kind)}")
        labels = {key: _describe(fault) for key, fault in of_kind.items()}
        groups = group_keys(labels)
        for group in groups[:most]:
            shards = dict.fromkeys(shard for key in group.keys if (shard := of_kind[key].shard))
            where = f"  in {_shard_list(list(shards))}" if shards else ""
            count = f"  ({len(group.keys)} tensors)" if len(group.keys) > 1 else ""
            lines.append(f"  {printable(group.pattern)}  {group.label}{count}{where}")
        if len(groups) > most:
            rest = sum(len(group.keys) for group in groups[most:])
            lines.append(f"  … and {len(groups) - most} more patterns ({rest} tensors)")
    return joined("\n", lines)


def _describe(fault: Fault) -> str:
    model = f"{list(fault.model_shape)} {fault.model_dtype}" if fault.model_shape is not None else ""
    stored = f"{list(fault.stored_shape)} {fault.stored_dtype}" if fault.stored_shape is not None else ""
    if fault.kind == "misshapen":
        return f"model {model}, checkpoint {stored}"
    if fault.note:
        return " ".join(part for part in (f"model {model}" if model else stored, f"- {fault.note}") if part)
    return model or stored


def _shard_list(shards: list[str]) -> str:
    return ", ".join(shards) if len(shards) <= 2 else f"{shards[0]} … {shards[-1]} ({len(shards)} shards)"
