"""A slice of the runs of `tests.fuzz.changes`: every moment, reader and change once or twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter


def outcomes(count: int) -> dict[str, dict[str, int]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz.changes", str(count)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return json.loads(done.stdout)


def by_reader(found: dict[str, dict[str, int]], reader: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for key, counts in found.items():
        total += Counter(counts) if f", {reader}, " in key else Counter()
    return total


def test_copies_never_die_by_a_signal_and_nothing_changed_is_taken_in():
    found = outcomes(24)
    copied = by_reader(found, "copy")
    assert copied.total() == 24
    assert set(copied) <= {"CorruptError", "loaded, right"}
    for key, counts in found.items():
        moment, reader, how = key.split(", ")[0], *key.split(", ")[-2:]
        if moment == "after its header was read":
            assert set(counts) == {"CorruptError"}, key
        if moment == "while it is loaded" and how != "replaced":  # a file that was replaced is still there
            assert set(counts) == {"CorruptError"}, key
        if moment == "once it is in use" and reader == "copy":
            assert set(counts) == {"loaded, right"}, key
    # What docs/safety.md says of mapped weights: a cut is a signal once they are in use.
    assert set(found["once it is in use, mapped, cut"]) == {"SIGBUS"}
