"""Runs the contestants of every table in turn, round after round, so that all meet the same noise."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks import checkpoints, measure
from benchmarks.loaders import find
from benchmarks.machine import load_average
from benchmarks.tables import Command, Load, Probe, Table, checkpoints_of
from benchmarks.verify import expected_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.checkpoints import Spec


_LEAST_LIMIT = 500_000_000  # bytes: with a lower limit not even the imports fit


@dataclass
class Row:
    """The figures of one contestant, one dict per round. After an `error` the contestant takes no further part."""

    what: Load | Command | Probe
    label: str
    runs: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether there is an error that the table does not expect and that is not a missing cgroup."""
        expected = getattr(self.what, "may_fail", False) or (self.error or "").startswith("no memory cgroup")
        return self.error is not None and not expected

    @property
    def wanted(self) -> bool:
        return self.error is None and (isinstance(self.what, Command) or len(self.runs) < self.what.most)


class Run:
    """One run of the chosen tables, on checkpoints in `cache`."""

    def __init__(
        self, tables: Sequence[Table], loaders: Sequence[str], specs: Mapping[str, Spec], cache: Path
    ) -> None:
        self.specs = specs
        self.cache = cache
        self.tables = {table.name: table for table in tables}
        self.rows = {
            table.name: [
                Row(row, _label(row))
                for row in table.rows
                if not isinstance(row, Load) or row.loader in loaders
            ]
            for table in tables
        }

    @property
    def checkpoints(self) -> list[str]:
        return sorted(set().union(*map(checkpoints_of, self.tables.values())))

    def bytes_to_write(self) -> int:
        """Return the bytes of disk that the checkpoints take which are not in the cache yet."""
        absent = [name for name in self.checkpoints if not expected_path(self.cache / name).exists()]
        return sum(self._spec(name).nbytes for name in absent)

    def write_checkpoints(self) -> None:
        for name in self.checkpoints:
            _say(f"writing {name}")
            spec, suffix = self._spec(name), name.rpartition(".")[2]
            checkpoints.write(spec, suffix, self.cache / name)
        # Every package is compiled and read once before: the first import after an installation takes longer.
        measure.command(["-c", "import torch, safetensors, shardload.load, shardload.cli"])

    def rounds(self, pairs: int, deadline: float) -> None:
        """Run at most `pairs` rounds of each table; after the first, only rounds that should end by `deadline`."""
        for number in range(1, pairs + 1):
            for name, rows in self.rows.items():
                left = [row for row in rows if row.wanted]
                end = time.monotonic() + sum(row.seconds for row in left)
                if number == 1 or end < deadline:
                    for row in left:
                        self._measure(self.tables[name], row, number)

    def _measure(self, table: Table, row: Row, number: int) -> None:
        started = time.monotonic()
        load = load_average()
        try:
            if isinstance(row.what, Load):
                figures = measure.load(self._job(row.what, table))
            elif isinstance(row.what, Probe):
                figures = measure.probe([self._folder(word) for word in row.what.arguments])
            else:
                figures = measure.command([self._folder(word) for word in row.what.arguments])
        except measure.MeasureError as error:
            row.error = str(error)
            _say(f"{table.name}: {row.label}: {row.error}")
            return
        row.seconds = time.monotonic() - started
        row.runs.append({**figures, "round": number, "load_average": load})
        first = next(iter(figures.items()))
        _say(f"{number} {table.name}: {row.label}: {first[0]} {first[1]:.2f}")

    def _job(self, load: Load, table: Table) -> dict[str, Any]:
        spec = self._spec(load.checkpoint)
        dtype = load.dtype or table.dtype
        return {
            "loader": load.loader,
            "folder": str(self.cache / load.checkpoint),
            "suffix": load.checkpoint.rpartition(".")[2],
            "kind": spec.kind,
            "config": spec.config,
            "dtype": dtype,
            "dtype_loaded": spec.dtype if dtype == "auto" else dtype,
            "spill": str(self.cache) if load.spill else None,
            "cold": table.cold,
            "limit": max(int(spec.nbytes * table.limit), _LEAST_LIMIT) if table.limit else 0,
            "forward": table.forward,
        }

    def _spec(self, checkpoint: str) -> Spec:
        return self.specs[checkpoint.rpartition(".")[0]]

    def _folder(self, word: str) -> str:
        return str(self.cache / word[1:-1]) if word.startswith("{") else word


def _label(row: Load | Command | Probe) -> str:
    if not isinstance(row, Load):
        return row.label
    label = find(row.loader).LABEL
    return f"{label}, {row.note}" if row.note else label


def _say(text: str) -> None:
    print(f"[load {os.getloadavg()[0]:.1f}] {text}", file=sys.stderr, flush=True)
