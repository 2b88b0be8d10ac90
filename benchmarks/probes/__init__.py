"""Probes: each measures several contestants in turn in one process: `python -m benchmarks.probes.NAME ARGUMENT…`.

Each probe prints one line of JSON with its figures: seconds and ratios.
"""
