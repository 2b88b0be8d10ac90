"""write_rows: keeps docs/traps.md, one row a trap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.mutants.traps import TRAPS
from tests.mutants.verdict import Verdict

_HEAD = """# Traps, and the tests that know them

A trap is a mistake that a loader can make in silence. Each row names the functions that guard against one, and the test
that fails when the guard is gone. `make mutants` takes the guards out: it changes the functions in one small place at a
time (deletes a statement, fixes a condition, drops a keyword or an operand, empties a loop, swaps an `except`) and runs
the test with each of these mutants. A mutant is killed when the test fails although a plain model still loads bit for
bit. The page shows the first one that takes the fix itself out, and how many of each function's mutants are killed.

| trap | test | taken out | killed | result |
|---|---|---|---|---|
"""


def rows_of(page: Path) -> dict[str, str]:
    """Return the rows of a page by their traps."""
    lines = page.read_text().splitlines() if page.exists() else []
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| trap ")]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def write_rows(page: Path, verdicts: Sequence[Verdict]) -> None:
    """Write the rows of these verdicts; those of other traps stay, those of traps that are gone go."""
    rows = rows_of(page) | {verdict.trap.trap: verdict.row() for verdict in verdicts}
    page.write_text(_HEAD + "".join(f"{rows[trap.trap]}\n" for trap in TRAPS if trap.trap in rows))
