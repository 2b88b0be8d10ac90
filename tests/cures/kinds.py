"""Kinds of cures: the texts of a code that differ in names and numbers only, and how many of each worked."""

from __future__ import annotations

import fcntl
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardload.errors import Cures, Wording

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Kind = tuple[str, str]
"""A code of an error (or the name of a command), and the cure's text without names and numbers."""

_VARIES = re.compile(
    r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\{[^}]*\}|[^\s;,()]*[/\\][^\s;,()]*|[\w*{}]+(?:\.[\w*{}]+)+|\d+|…"
)


def choices(cure: str | None) -> list[str]:
    """Return the cures of which one is enough."""
    if cure is None:
        return []
    return list(cure.parts) if isinstance(cure, Cures) else [cure]


def kind_of(code: str, cure: str) -> Kind:
    """Return the kind of a cure."""
    return code, re.sub(r"…(?:(?:, | and | )…)+", "…", _VARIES.sub("…", _template(cure)))[:160]


def _template(cure: str) -> str:
    if not isinstance(cure, Wording):
        return str(cure)
    named = {name: f"{name}=…" for name in cure.own}
    parts = [_template(part) if isinstance(part, Wording) else "…" for part in cure.parts]
    return cure.template.format(*parts, **named)


@dataclass
class Tally:
    """How often each kind of cure was printed, applied and worked, and what failed."""

    counts: dict[Kind, Counter[str]] = field(default_factory=dict)
    failed: dict[Kind, str] = field(default_factory=dict)

    def printed(self, kind: Kind) -> None:
        """Count a cure that is words, or leaves a value to the reader."""
        self.counts.setdefault(kind, Counter())["printed"] += 1

    def applied(self, kind: Kind, why: str | None) -> None:
        """Count a cure that was applied; `why` says why it does not cure."""
        self.printed(kind)
        self.counts[kind] += Counter(applied=1, worked=int(not why))
        if why:
            self.failed.setdefault(kind, why)

    def lines(self) -> Iterable[str]:
        """Yield the table by code, and what failed."""
        for code, row in sorted(by_code(self.counts).items()):
            yield f"{code:<16} " + "  ".join(f"{name} {number:>5}" for name, number in row.items())
        for (code, text), why in self.failed.items():
            yield f"FAILED {code}: {text}\n    {why}"

    def add_to(self, path: Path) -> None:
        """Add the counts to those of a file; processes that were started by tests do so beside the tests."""
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._add_to(path)

    def _add_to(self, path: Path) -> None:
        old: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"counts": [], "failed": []}
        before = {(code, text): Counter(row) for code, text, row in old["counts"]}
        for kind, row in self.counts.items():
            before.setdefault(kind, Counter()).update(row)
        failed = [*old["failed"], *([*kind, why] for kind, why in self.failed.items())]
        counts = [[*kind, row] for kind, row in sorted(before.items())]
        path.write_text(json.dumps({"counts": counts, "failed": failed}, indent=1, ensure_ascii=False))


def by_code(counts: dict[Kind, Counter[str]]) -> dict[str, dict[str, int]]:
    """Return how many cures of each code were printed, applied and worked, and the kinds of those that worked."""
    table: dict[str, dict[str, int]] = {}
    for (code, _), row in counts.items():
        line = table.setdefault(code, {"printed": 0, "applied": 0, "worked": 0, "kinds": 0})
        for name in ("printed", "applied", "worked"):
            line[name] += row[name]
        line["kinds"] += row["worked"] > 0
    return table
