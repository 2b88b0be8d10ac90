"""The check for GPUs, on the processor: it runs the rows of the matrix, and says what ran and what did not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.distributed.spawn import ROOT


def checked(*arguments: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / "scripts" / "device_check.py"),
        "--ranks",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_mesh_of_one_rank_is_called_so():
    done = checked("--device", "cpu", "--gpus", "1", "--only", "fsdp2+tp-4")
    assert done.returncode == 0, done.stdout + done.stderr
    first, row, last = done.stdout.splitlines()
    assert "no GPU takes part in this check" in first
    assert row.startswith("fsdp2+tp-4    1 rank (a mesh of one, not of 4): ")
    assert last.startswith("1 of 1 layouts are equal to one process")


def test_without_a_gpu_nothing_is_claimed():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = checked()
    assert done.returncode == 2
    assert "no CUDA device here" in done.stdout
    assert "nothing ran" in done.stdout
