"""`python -m benchmarks`: measures all loaders, and writes the figures as JSON and as tables to benchmarks/results/."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.loaders import LOADERS
from benchmarks.machine import machine, versions
from benchmarks.measure import ROOT
from benchmarks.plots import plots_of
from benchmarks.report import data_of, markdown_of
from benchmarks.run import Run
from benchmarks.tables import FULL, QUICK, chosen, names

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPARE_BYTES = 200_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks, print and write the tables, and return 1 if a contestant failed, else 0."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("memory is read from /proc: the benchmarks run on Linux")
    started, clock = datetime.now(timezone.utc), time.monotonic()
    tables = chosen(options.only)
    cache = Path(options.cache or tempfile.mkdtemp(prefix="shardload-benchmarks-")).absolute()
    try:
        run = Run(tables, options.loaders, QUICK if options.quick else FULL, cache)
        cache.mkdir(parents=True, exist_ok=True)
        lacking = run.bytes_to_write() + _SPARE_BYTES - shutil.disk_usage(cache).free
        if lacking > 0:
            parser.error(
                f"{cache} lacks {lacking / 1e9:.1f} GB; name a folder on a larger disk: TMPDIR= or --cache"
            )
        run.write_checkpoints()
        run.rounds(options.pairs, clock + 60 * options.minutes)
    finally:
        if not options.cache:
            shutil.rmtree(cache, ignore_errors=True)
    data = {
        "command": _command(sys.argv[1:] if arguments is None else arguments),
        "quick": options.quick,
        "started": started.isoformat(timespec="seconds"),
        "seconds": time.monotonic() - clock,
        "machine": machine(),
        "versions": versions(),
        **data_of(run),
    }
    text = markdown_of(data)
    if options.results or not options.quick:
        results = Path(options.results or ROOT / "benchmarks" / "results")
        results.mkdir(parents=True, exist_ok=True)
        files = {table.file for table in tables}
        file = files.pop() if len(files) == 1 else "bench"
        (results / f"{file}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (results / f"{file}.md").write_text(text, encoding="utf-8")
        for name, svg in plots_of(data).items():
            (results / name).write_text(svg, encoding="utf-8")
    print(text)
    return int(any(row.failed for rows in run.rows.values() for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="rounds at most (default 5)")
    parser.add_argument("--minutes", type=float, default=9, help="begin no round that would end after it")
    parser.add_argument("--quick", action="store_true", help="tiny checkpoints, to test the suite itself")
    parser.add_argument(
        "--only", nargs="+", choices=names(), metavar="TABLE", help=f"of {', '.join(names())}"
    )
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=LOADERS, metavar="LOADER")
    parser.add_argument("--cache", help="keep the checkpoints (18 GB) in this folder for the next run")
    parser.add_argument("--results", help="where JSON and Markdown go (default: benchmarks/results)")
    return parser


def _command(arguments: Sequence[str]) -> str:
    """Return the command without the folders of the machine that it ran on, which change no figure."""
    kept, folders = [], {"--results", "--cache"}
    for before, each in zip(["", *arguments], arguments, strict=False):
        if before not in folders and each.partition("=")[0] not in folders:
            kept.append(each)
    return " ".join(["python -m benchmarks", *kept])


if __name__ == "__main__":
    sys.exit(main())
