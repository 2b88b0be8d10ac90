"""`python -m tests.cures.process COMMAND …`: a command as a process of its own, whose cures are applied."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import shardload.cli
from tests.cures.suite import TALLY

if __name__ == "__main__":
    try:
        shardload.cli.main()
    finally:
        sys.stdout.flush()
        if os.environ.get("SHARDLOAD_CURES"):
            TALLY.add_to(Path(os.environ["SHARDLOAD_CURES"]))
