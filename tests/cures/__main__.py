"""`python -m tests.cures`: apply every cure that the suite provokes, room by room, and write the tables.

Commands that tests start as processes of their own are among them. Left out are processes of ranks, which wait for one
another (a second call on one of them would wait for ever), processes that are killed or interrupted, budgets, and files
with changed bytes, whose refusals are those of tests/checkpoint. `--check` compares with the committed counts and
writes nothing; rooms may be named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.cures.kinds import Kind, by_code
from tests.cures.test_law import kinds_by_code

ROOT = Path(__file__).parents[2]
COUNTS = Path(__file__).parent / "worked.json"
PAGE = ROOT / "docs" / "doctor.md"
# Tests that run for long and that refuse nothing are left out by name: they would double the time.
ROOMS = {
    "commands": "tests/cli -k not (test_over_ranks or test_demo or interrupt or terminal)",
    "classes": "tests/transformers_classes tests/library_parts",
    "oracles": "tests/oracles -k not (test_architectures or test_parts or random)",
    "code": "tests/remote_code tests/test_load_code.py",
    "loads": "tests/cures tests/loading tests/errors tests/keywords tests/test_load.py tests/test_load_config.py "
    "tests/test_where.py -k not rank",
    "diagnosis": "tests/diagnosis tests/test_doctor.py -k not (budget or damage or families or strangers or equal_exp)",
    "adapters": "tests/adapters -k not (ranks or matrix or killed or random)",
    "checkpoints": "tests/checkpoint tests/test_load_hub.py -k not (bombs or gadgets or random)",
    "writing": "tests/writing tests/compare tests/test_saving.py tests/test_forecast.py -k not (kill or collective)",
    "key maps": "tests/keymap -k not random",
    "model": "tests/model tests/test_kinds_of_modules.py",
    "placement": "tests/placement tests/dequantise -k not (pages or layout or no_kernel)",
    "stand-in": "tests/transformers_shim -k not random",
}


def main() -> int:
    """Run the rooms; exit code 1 where a cure failed, or a code has fewer kinds of cures that work than before."""
    options = argparse.ArgumentParser(prog="python -m tests.cures")
    options.add_argument("rooms", nargs="*", metavar="ROOM", help=" ".join(ROOMS))
    options.add_argument(
        "--keep", type=Path, help="folder with a file a room; rooms that are there do not run again"
    )
    options.add_argument("--check", action="store_true", help="write nothing")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        for room in given.rooms or ROOMS:
            if not (folder / f"{room}.json").exists():
                run_room(room, folder / f"{room}.json")
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    counts: dict[Kind, Counter[str]] = {}
    for code, text, row in (line for result in results for line in result["counts"]):
        counts.setdefault((code, text), Counter()).update(row)
    failed = [line for result in results for line in result["failed"]]
    for code, text, why in failed:
        print(f"FAILED {code}: {text}\n    {why}")
    table = by_code(counts)
    fewer = [] if given.rooms else lost(json.loads(COUNTS.read_text())["suite"], table)
    print("\n".join([*markdown(table), *fewer]))
    if not given.check and not given.rooms:
        suite = {code: row["kinds"] for code, row in sorted(table.items()) if row["kinds"]}
        with tempfile.TemporaryDirectory() as scratch:
            law = kinds_by_code(Path(scratch))
        COUNTS.write_text(json.dumps({"law": law, "suite": suite}, indent=1) + "\n")
        write_page(markdown(table))
    return 1 if failed or fewer else 0


def run_room(room: str, found: Path) -> None:
    """Run the tests of a room with the plugin."""
    paths, _, chosen = ROOMS[room].partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.cures.suite"]
    command += [*paths.split(), *(["-k", chosen] if chosen else [])]
    environment = {**os.environ, "SHARDLOAD_CURES": str(found)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(room, "|", (done.stdout.splitlines() or [done.stderr[-400:]])[-1], flush=True)


def lost(before: dict[str, int], table: dict[str, dict[str, int]]) -> list[str]:
    """Return the codes of which fewer kinds of cures work than before."""
    now = {code: row["kinds"] for code, row in table.items()}
    return [
        f"{code}: {now.get(code, 0)} kinds of cures work, and {count} did"
        for code, count in before.items()
        if now.get(code, 0) < count
    ]


def markdown(table: dict[str, dict[str, int]]) -> list[str]:
    """Return the table of the page."""
    rows = ["| code | printed | applied | worked | failed | kinds that worked |", "|---|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    for code, row in sorted(table.items()):
        rows.append(_row(f"`{code}`", row))
        total.update(row)
    return [*rows, _row("all", total)]


def _row(name: str, row: dict[str, int]) -> str:
    failed = row["applied"] - row["worked"]
    return f"| {name} | {row['printed']} | {row['applied']} | {row['worked']} | {failed} | {row['kinds']} |"


def write_page(rows: list[str]) -> None:
    """Write the table between the marks of the page."""
    text = PAGE.read_text()
    begin, end = "<!-- cures: begin -->\n", "<!-- cures: end -->"
    new = f"{begin}{chr(10).join(rows)}\n{end}"
    PAGE.write_text(re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: new, text, flags=re.DOTALL))


if __name__ == "__main__":
    sys.exit(main())
