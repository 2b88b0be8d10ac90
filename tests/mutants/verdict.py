"""Verdict: what the mutants of a trap's guards showed about its test."""

from __future__ import annotations

import io
import tempfile
from collections import Counter, defaultdict
from contextlib import redirect_stdout
from dataclasses import dataclass, field

import pytest

from tests.mutants.child import Outcome, outcome
from tests.mutants.trap import Guard, Trap


@dataclass
class Verdict:
    """`passes` is the test's result without a mutant; `mutants` has the mutants as text, by their outcomes."""

    trap: Trap
    passes: bool = False
    counts: dict[str, Counter[Outcome]] = field(default_factory=dict)
    mutants: defaultdict[Outcome, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def known(self) -> bool:
        """Whether the test passes, and fails for at least one mutant that takes the fix out."""
        return self.passes and bool(self.trap.exempt or self.fixes_out)

    @property
    def fixes_out(self) -> list[str]:
        """The mutants that take the fix out, and make the test fail while a plain model is still loaded."""
        return [text for text in self.mutants["killed"] if self.trap.fix in text]

    def row(self) -> str:
        """Return the trap's row in docs/traps.md."""
        killed = "<br>".join(
            f"`{guard.rpartition(':')[2]}` {counts['killed']} of {counts.total()}"
            for guard, counts in self.counts.items()
        )
        taken_out = next(iter(self.fixes_out), "").replace("|", "\\|")
        if not self.passes:
            result = "the test FAILS as it is"
        elif self.trap.exempt:
            result = f"exempt: {self.trap.exempt}"
        else:
            result = "known" if self.known else "not killed"
        return f"| {self.trap.trap} | `{self.trap.test}` | {taken_out} | {killed} | {result} |"


class _Run:
    """A pytest plugin: in place of running the collected tests once, runs them with every mutant."""

    def __init__(self, verdict: Verdict, until_known: bool) -> None:
        self._verdict = verdict
        self._until_known = until_known

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        verdict = self._verdict
        verdict.passes = bool(session.items) and outcome(session) == "survived"
        for name in verdict.trap.guards:
            guard, counts = Guard(name), verdict.counts.setdefault(name, Counter())
            for text in guard.mutants():
                if not (self._until_known and verdict.fixes_out):
                    found = outcome(session, guard)
                    counts[found] += 1
                    verdict.mutants[found].append(text)
        return True


def verdict_on(trap: Trap, *, until_known: bool = False) -> Verdict:
    """Run a trap's test with each mutant of its guards; with `until_known` only until one is killed."""
    verdict = Verdict(trap)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as said:
        options = ["-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
        code = pytest.main([trap.test, *options], plugins=[_Run(verdict, until_known)])
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"{trap.test} could not be run:\n{said.getvalue()}")
    return verdict
