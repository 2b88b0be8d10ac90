"""AdapterReport: what an adapter file held, where each tensor went, and what did not fit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from shardload.keys import group_keys

_MOST_FAULTS_SHOWN = 12


@dataclass(frozen=True)
class AdapterRow:
    """One stored tensor and the tensor of the model that it became.

    `dtype` is the stored code; `scale` is the factor of B @ A, None for a tensor that replaces one of the base;
    `note` says what else happened (a cast, a copy that was compared).
    """

    key: str
    target: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    note: str = ""


@dataclass(frozen=True)
class AdapterFault:
    """One disagreement of file and model, or of file and config.

    `kind` is one of "unexpected", "missing", "shape", "rank", "duplicate", "config", "ambiguous", "base" (a
    MismatchError), "unsupported" (UnsupportedError), "empty", "not finite", "dtype" (CorruptError).
    """

    kind: str
    key: str
    text: str
    nearest: str | None = None
    stored_shape: tuple[int, ...] | None = None
    model_shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """Return the fault on one line: key, text, both shapes, the nearest module."""
        line = f"{shown(self.key)}: {self.text}"
        if self.stored_shape is not None and self.model_shape is not None:
            line += f" (stored {self.stored_shape}, the model's is {self.model_shape})"
        return (
            f"{line}; nearest module: {shown(self.nearest) or 'the model'}"
            if self.nearest is not None
            else line
        )


@dataclass
class AdapterReport:
    """How one adapter was loaded. `str()` is for people, `to_dict()` for JSON.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, alpha=16, targets=["0"])
        >>> report.ranks, report.scales, report.trainable
        ({2: 1}, {8.0: 1}, True)
        >>> [row.target for row in report.rows]
        ['0.lora_A.default.weight', '0.lora_B.default.weight']

    `base` is the base model that the adapter's config names. `modules` counts the adapted layers, `ranks` and
    `scales` count layers by value. `nbytes` is the size of the stored tensors, `seconds` the whole call.
    `merged`: the adapter was merged while the base was loaded; `least_share` is then the smallest share of a delta
    that survived the rounding.
    """

    name: str
    where: str
    format: str
    base: str | None = None
    active: bool = False
    trainable: bool = False
    merged: bool = False
    least_share: float | None = None
    rows: tuple[AdapterRow, ...] = ()
    modules: int = 0
    ranks: dict[int, int] = field(default_factory=dict)
    scales: dict[float, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    faults: tuple[AdapterFault, ...] = ()
    nbytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data; shapes are lists, ranks and scales lists of pairs.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> shardload.attach_lora(model, r=2, targets=["0"]).to_dict()["ranks"]
        [{'rank': 2, 'modules': 1}]
        """
        names = ("name", "where", "format", "base", "active", "trainable", "merged", "least_share")
        plain = {key: getattr(self, key) for key in names}
        return {
            **plain,
            "modules": self.modules,
            "ranks": [{"rank": rank, "modules": count} for rank, count in self.ranks.items()],
            "scales": [{"scale": scale, "modules": count} for scale, count in self.scales.items()],
            "nbytes": self.nbytes,
            "seconds": self.seconds,
            "rows": [{**vars(row), "shape": list(row.shape)} for row in self.rows],
            "warnings": list(self.warnings),
            "faults": [fault_dict(fault) for fault in self.faults],
        }

    def __str__(self) -> str:
        """Return a few lines: where from, the adapted layers and replaced tensors by template, warnings."""
        lines = [f"adapter {shown(self.name)!r} ({self.format})"]
        if self.where:
            lines[0] += f" from {shown(self.where)}"
        if self.base:
            lines.append(f"  made for     {shown(self.base)}")
        state = "active" if self.active else "attached, not active"
        state += ", trainable" if self.trainable else ", frozen"
        if self.merged:
            share = self.least_share
            state = "merged" if share is None else f"merged, at least {share:.1%} of each delta survived"
        lines.append(
            f"  adapts       {self.modules} layers, rank {counted(self.ranks)}, scale {counted(self.scales)}, "
            f"{size_of(self.nbytes)} in {self.seconds:.2f} s; {state}"
        )
        labels = {row.target: (row.shape, row.dtype, row.note) for row in self.rows}
        for group in group_keys(labels):
            shape, dtype, note = labels[group.keys[0]]
            lines.append(f"    {shown(group.pattern)}  {shape} {dtype}{'  ' + note if note else ''}")
        lines += [f"  warning: {shown(warning)}" for warning in self.warnings]
        lines += [f"  fault: {line}" for line in fault_lines(self.faults)]
        return "\n".join(lines)


def fault_lines(faults: tuple[AdapterFault, ...]) -> list[str]:
    """Return one line for each of the first twelve faults, then the number of the others by kind."""
    lines = [str(fault) for fault in faults[:_MOST_FAULTS_SHOWN]]
    rest = Counter(fault.kind for fault in faults[_MOST_FAULTS_SHOWN:])
    return lines + [f"and {count} more ({kind})" for kind, count in rest.items()]


def shown(text: str) -> str:
    """Return text from a file with control and other unprintable characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def size_of(nbytes: int) -> str:
    """Return a number of bytes in MB or kB."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.1f} kB"


def counted(values: dict[Any, int]) -> str:
    """Return the values as text, with the number of layers of each where there are several."""
    if len(values) == 1:
        return f"{next(iter(values)):g}"
    return ", ".join(f"{value:g} ({count} layers)" for value, count in values.items()) or "none"


def fault_dict(fault: AdapterFault) -> dict[str, Any]:
    """Return a fault as JSON-ready data."""
    shapes = {
        key: None if shape is None else list(shape)
        for key, shape in (("stored_shape", fault.stored_shape), ("model_shape", fault.model_shape))
    }
    return {**vars(fault), **shapes}
