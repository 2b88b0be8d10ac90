"""`make fuzz`: run every fuzz target and the tests of the safety table, and write the table of docs/safety.md.

    python -m tests.fuzz                  minutes of inputs of each kind, a million at most; writes the table
    python -m tests.fuzz --count 10000    a shorter run; writes nothing
    python -m tests.fuzz --target indexes --seed 7 --count 100000

Exit code 1, and no table, where an input was neither accepted rightly nor refused by one typed error, a test failed, a
copied load died by a signal, or a disturbance (`tests.fuzz.disturbances`) left anything wrong.
"""

# ruff: noqa: RUF001  a multiplication sign is one
from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import safetensors
import torch

from tests.fuzz import disturbances, table
from tests.fuzz.changes import run as run_changes
from tests.fuzz.documents import fuzz_configs, fuzz_indexes
from tests.fuzz.headers import fuzz_safetensors, fuzz_torch
from tests.fuzz.key_maps import fuzz_map_files, fuzz_round_trips
from tests.fuzz.tally import Tally

PAGE = Path("docs/safety.md")
PIECE = 5_000
# Each target, and how many of a million inputs it gets: torch's own loader, the oracle of .bin files, is slow.
TARGETS = {
    "safetensors headers": (fuzz_safetensors, 1.0),
    "indexes": (fuzz_indexes, 1.0),
    "configs": (fuzz_configs, 1.0),
    "zip .bin files": (lambda seed, count: fuzz_torch(seed, count, as_zip=True), 0.1),
    "legacy .bin files": (lambda seed, count: fuzz_torch(seed, count, as_zip=False), 0.1),
    "key map files": (fuzz_map_files, 0.1),
    "key map round trips": (fuzz_round_trips, 1.0),
}


def fuzz(name: str, seed: int, count: int, minutes: float) -> Tally:
    """Run one target a piece at a time, each from its own seed, for at most so long; say how it goes."""
    target, share = TARGETS[name]
    wanted, tally, started = max(1, int(count * share)), Tally(), time.perf_counter()
    while tally.tried < wanted and time.perf_counter() - started < 60 * minutes:
        tally += target(seed + tally.tried, min(PIECE, wanted - tally.tried))
    print(f"{name}: {tally} ({time.perf_counter() - started:.0f} s)", flush=True)
    for line in tally.others[:5]:
        print(f"  {line}", flush=True)
    return tally


def kept_or_new(name: str, arguments: argparse.Namespace) -> Tally:
    """Return the tally that the results file has of a target, or run the target and note it there."""
    file: Path | None = arguments.results
    results = json.loads(file.read_text()) if file and file.exists() else {}
    if name not in results:
        tally = fuzz(name, arguments.seed, arguments.count, arguments.minutes)
        results[name] = vars(tally)
        if file:
            file.write_text(json.dumps(results, indent=1))
    return Tally(**results[name])


def changes(runs: int) -> tuple[str, bool]:
    """Return the figure of files that change under a load, and whether copies kept their promise."""
    found = run_changes(runs)
    by_reader = {reader: Counter[str]() for reader in ("mapped", "copy")}
    for key, counts in found.items():
        by_reader["copy" if ", copy, " in key else "mapped"].update(counts)
    kept = set(by_reader["copy"]) <= {"CorruptError", "loaded, right"}
    said = [f"{name} {count}" for name, count in sorted(by_reader["mapped"].items())]
    right = by_reader["copy"]["loaded, right"]
    text = (
        f"4 moments × 3 changes, {runs} runs with `copy=True`: 0 signals, {by_reader['copy']['CorruptError']} errors, "
        f"{right} loads of the old bytes, 0 of changed ones; {runs} runs mapped: {', '.join(said)}"
    )
    print(text, flush=True)
    return text, kept


def disturbed() -> tuple[dict[str, str], list[str]]:
    """Run every kind of disturbance; return its figures, and what was wrong."""
    figures, bad = {}, []
    for name in disturbances.KINDS:
        found = disturbances.run(name)
        figures[name] = disturbances.said(found)
        bad += [f"{name}: {what} ({times})" for what, times in disturbances.wrong(found).items()]
        print(f"{name}: {figures[name]}", flush=True)
    return figures, bad


def passed_tests() -> dict[str, int]:
    """Run the tests of the table and return how many passed for each selector. Raises SystemExit where one fails."""
    selectors = sorted({selector for row in table.ROWS for selector in row.tests})
    files = sorted({selector.partition("::")[0] for selector in selectors})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *files]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        print(done.stdout[-300:], flush=True)
        if done.returncode:
            raise SystemExit(done.stdout[-8000:])
        names = [
            (case.get("classname", ""), case.get("name", ""))
            for case in ET.parse(report).iter("testcase")
            if not len(case)
        ]
    found = {}
    for selector in selectors:
        file, _, function = selector.partition("::")
        module = file.removesuffix(".py").replace("/", ".")
        found[selector] = sum(
            where == module and (not function or name.partition("[")[0] == function) for where, name in names
        )
        assert found[selector], selector
    return found


def write_page(text: str, minutes: float) -> None:
    """Put the table between its marks in docs/safety.md."""
    page = PAGE.read_text()
    head, _, rest = page.partition(table.BEGIN)
    _, _, tail = rest.partition(table.END)
    note = (
        f"Written by `make fuzz` with CPython {platform.python_version()}, torch {torch.__version__}, safetensors "
        f"{safetensors.__version__}, in one run, each target for at most {minutes:g} minutes. After each test file: "
        "how many of its tests passed."
    )
    PAGE.write_text(f"{head}{table.BEGIN}\n\n{note}\n\n{text}\n\n{table.END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument(
        "--seed", type=int, default=1_000_000, help="the slices of the test suite begin at 1 to 6"
    )
    parser.add_argument("--minutes", type=float, default=2.5, help="the longest that a target may take")
    parser.add_argument("--target", choices=list(TARGETS))
    parser.add_argument(
        "--results", type=Path, help="a file to keep tallies in: a run that was ended goes on from it"
    )
    arguments = parser.parse_args()
    names = [arguments.target] if arguments.target else list(TARGETS)
    whole = not arguments.target and arguments.count >= 1_000_000
    figure, kept = changes(100) if whole else ("", True)
    beside, disturbing = disturbed() if whole else ({}, [])
    passed = passed_tests() if whole else {}
    tallies = {name: kept_or_new(name, arguments) for name in names}
    bad = [name for name, tally in tallies.items() if tally.other]
    if not whole:
        raise SystemExit(f"neither accepted nor refused: {bad}" if bad else 0)
    bad += disturbing
    if bad or not kept:
        raise SystemExit(f"no table: {bad or 'a copied load died, or took changed bytes'}")
    figures = {name: str(tally) for name, tally in tallies.items()}
    write_page(table.written(passed, {**figures, **beside}, figure), arguments.minutes)


if __name__ == "__main__":
    main()
