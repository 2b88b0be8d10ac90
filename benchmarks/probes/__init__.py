"""Measurements of several contestants in one process, in turn: `python -m benchmarks.probes.NAME ARGUMENT…`.

Each prints one line of JSON with its figures: seconds, and ratios.
"""
