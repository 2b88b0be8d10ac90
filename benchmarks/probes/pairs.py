"""Timing several functions in turn, so that all meet the same noise."""

from __future__ import annotations

import time
from statistics import median


def in_turn(contestants, seconds, block):
    """Return each one's seconds a call, round by round: blocks of `block` calls, for `seconds` or at least 7 rounds."""
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
    """Return the median over the rounds of what one costs more than another."""
    return median(a - b for a, b in zip(rounds[name], rounds[base], strict=True))


def times(rounds, name, base):
    """Return the median over the rounds of how many times the other's time one takes."""
    return median(a / b for a, b in zip(rounds[name], rounds[base], strict=True))
