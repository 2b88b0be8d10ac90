"""A slice of every disturbance of a load that `make fuzz` counts, and that each of them can be seen to go wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz import disturbances

SLICES = {
    "threads": 40,
    "writers": 8,
    "shared bytes": 30,
}  # interrupts and forks have slices in tests/test_interrupts.py


@pytest.mark.parametrize("kind", SLICES)
def test_nothing_is_wrong_after_it(kind):
    found = disturbances.run(kind, SLICES[kind])
    assert disturbances.wrong(found) == {}
    assert found["tried"] >= SLICES[kind]


def test_what_is_wrong_is_counted():
    found = Counter({"tried": 5, "a mixture": 2, "fine": 0})
    assert disturbances.wrong(found) == {"a mixture": 2}
    assert disturbances.said(found) == "5 tried, wrong = 2"


def test_a_kind_that_dies_is_wrong(monkeypatch):
    monkeypatch.setitem(disturbances.KINDS, "nothing", (lambda count: Counter(), 1))
    assert sum(disturbances.wrong(disturbances.run("nothing", 1)).values()) == 1
