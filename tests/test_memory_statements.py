"""A slice of the random loads whose memory is measured; `python -m tests.memory_statements` runs more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_slice_of_random_loads_takes_no_more_than_was_stated():
    command = [sys.executable, "-W", "ignore", "-m", "tests.memory_statements", "--count", "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "12 loads: 0 understated" in done.stdout, done.stdout + done.stderr
