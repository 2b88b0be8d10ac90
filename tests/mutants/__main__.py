"""`make mutants`: take the fix of every trap out, as mutants of its guards, and show that the trap's test fails.

    python -m tests.mutants                              every trap, every mutant
    python -m tests.mutants rehears ties                 the traps whose sentence, test or guards contain a text
    python -m tests.mutants --until-known ties           each trap until its first mutant is killed
    python -m tests.mutants --write docs/traps.md ties   also write the rows into the page

Exit code 1 where a test fails without a mutant, or no mutant makes it fail.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.mutants.child import warm_up
from tests.mutants.page import write_rows
from tests.mutants.traps import TRAPS
from tests.mutants.verdict import verdict_on


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("names", nargs="*", help="parts of sentences, tests or guards; all traps by default")
    parser.add_argument(
        "--until-known", action="store_true", help="run a trap until its first mutant is killed"
    )
    parser.add_argument(
        "--survivors", action="store_true", help="print the mutants that a test did not notice"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the rows into this Markdown page")
    options = parser.parse_args()
    if options.write and options.until_known:
        parser.error("the page counts every mutant: leave out --until-known")
    chosen = [
        trap
        for trap in TRAPS
        if not options.names
        or any(name in f"{trap.trap} {trap.test} {trap.guards}" for name in options.names)
    ]
    warm_up()
    verdicts = []
    for trap in chosen:
        started = time.perf_counter()
        verdict = verdict_on(trap, until_known=options.until_known)
        print(f"{verdict.row()} {time.perf_counter() - started:.0f} s", flush=True)
        for text in verdict.mutants["survived"] if options.survivors else ():
            print(f"    survived: {text}", flush=True)
        verdicts.append(verdict)
    if options.write:
        write_rows(options.write, verdicts)
    raise SystemExit(0 if verdicts and all(verdict.known for verdict in verdicts) else 1)


if __name__ == "__main__":
    main()
