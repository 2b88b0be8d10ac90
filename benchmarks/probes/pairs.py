"""Times several functions in turn, so that all meet the same noise."""

from __future__ import annotations

import time
from statistics import median


def in_turn(contestants, seconds, block):
    """Return each function's seconds per call in each round of `block` calls, for `seconds` or at least 7 rounds."""
    for run in contestants.values():
        for _ in range(3):
            run()
    rounds = {name: [] for name in contestants}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(rounds.values()))) < 7:
        for name, run in contestants.items():
            start = time.perf_counter()
            for _ in range(block):
                run()
            rounds[name].append((time.perf_counter() - start) / block)
    return rounds


def over(rounds, name, base):
    """Return the median over the rounds of the seconds that `name` takes beyond those of `base`."""
    return median(a - b for a, b in zip(rounds[name], rounds[base], strict=True))


def times(rounds, name, base):
    """Return the median over the rounds of the time of `name` divided by that of `base`."""
    return median(a / b for a, b in zip(rounds[name], rounds[base], strict=True))
