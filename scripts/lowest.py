"""Runs the fast part of the suite in an environment, and keeps the table of docs/versions.md.

    python scripts/lowest.py                                       # in this environment
    python scripts/lowest.py --write docs/versions.md              # the same, as a row of the table
    python3.10 scripts/lowest.py --torch 2.10.0 --others lowest --write docs/versions.md
    python3.13 scripts/lowest.py --torch 2.15.0 --write docs/versions.md

With `--torch` the environment is made, of the Python that runs this, and removed afterwards: on a machine that gets
torch from PyPI 3 GB are downloaded, and 6 GB of disk are needed meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = ("torch", "safetensors", "huggingface_hub", "click", "rich", "tqdm")

SLOW = (
    "_system/test_agreement.py",
    "adapters/merging/test_killed_merge.py",
    "adapters/merging/test_merge_memory.py",
    "adapters/test_over_ranks.py",
    "checkpoint/formats/test_gadgets.py",
    "checkpoint/test_bombs.py",
    "cli/test_examples.py",
    "cli/test_over_ranks.py",
    "diagnosis/test_budget.py",
    "diagnosis/test_damage.py",
    "distributed",
    "fuzz",
    "oracles/test_random_modules.py",
    "test_call_budget.py",
    "test_forecast.py",
    "test_interrupts.py",
    "test_memory_budget.py",
    "test_memory_statements.py",
    "test_mirror.py",
    "test_mutants.py",
    "writing/test_collective.py",
    "writing/test_killed_saves.py",
    "writing/test_killed_writing.py",
)
"""Files of tests that take half of the suite's time, and use nothing of a dependency that the others don't use."""


def main() -> int:
    """Run what the arguments ask for; return pytest's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--torch", metavar="VERSION", help="make an environment with this release")
    parser.add_argument("--others", choices=["lowest", "newest"], default="newest")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the result into its table")
    asked = parser.parse_args()
    if asked.torch is None:
        return measure(sys.executable, asked.write)
    with tempfile.TemporaryDirectory() as folder:
        python = make_environment(Path(folder), asked.torch, lowest=asked.others == "lowest")
        return measure(python, asked.write)


def make_environment(folder: Path, torch: str, *, lowest: bool) -> str:
    """Make an environment with this `torch` and the lowest or newest release of all others; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python, limits = str(folder / "venv/bin/python"), folder / "constraints.txt"
    lines = (ROOT / "lowest.txt").read_text().splitlines() if lowest else []
    kept = [line for line in lines if not line.startswith("torch==")]
    limits.write_text("\n".join([*kept, f"torch=={torch}", ""]))
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(limits), "-e", f"{ROOT}[test]"]
    subprocess.run(install, check=True)
    return python


def measure(python: str, table: Path | None) -> int:
    """Run the fast part of the suite with `python`; write a row into `table`, if there is one to write into."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        ignored = [f"--ignore=tests/{name}" for name in SLOW]
        command = [python, "-m", "pytest", f"--junitxml={results}", *ignored]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        if table is not None:
            write_row(table, row_of(python, results, done.returncode))
    return done.returncode


def row_of(python: str, results: Path, code: int) -> str:
    """Return the row of a run: the versions of its environment, and what came out."""
    ask = "import json, sys, importlib.metadata as m; "
    ask += f"print(json.dumps([sys.version.split()[0], *map(m.version, {NAMES!r})]))"
    versions = json.loads(subprocess.run([python, "-c", ask], capture_output=True, check=True).stdout)
    return f"| {' | '.join(versions)} | {outcome(results, code)} |"


def outcome(results: Path, code: int) -> str:
    """Return what pytest's results file says, or that the run ended without one."""
    if not results.is_file():
        return f"ended with {code}, before the last test"
    cases = list(ET.parse(results).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    said = f"{len(cases) - len(failed) - skipped} passed, {len(failed)} failed, {skipped} skipped"
    names = sorted({str(case.get("name")).split("[")[0] for case in failed})
    return said + (f": {', '.join(f'`{name}`' for name in names)}" if names else "")


def write_row(table: Path, row: str) -> None:
    """Put a row into the table at the end of a page, in place of the row with the same versions."""
    lines = table.read_text().splitlines()
    last = next(index for index, line in enumerate(lines) if line.startswith("|---")) + 1
    rows = {line.rsplit(" | ", 1)[0]: line for line in [*lines[last:], row]}
    table.write_text("\n".join([*lines[:last], *(rows[key] for key in sorted(rows))]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
