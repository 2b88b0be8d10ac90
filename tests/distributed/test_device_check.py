"""The check for GPUs, on the processor: it runs the rows of the matrix, and says what ran and what did not."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.distributed.spawn import ROOT


@pytest.fixture(scope="module")
def check():
    """The script, as a module: what it starts is forked from the server that the other tests have."""
    spec = importlib.util.spec_from_file_location("device_check", ROOT / "scripts" / "device_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_mesh_of_one_rank_is_called_so(check, capsys):
    code = check.main(["--ranks", "--device", "cpu", "--gpus", "1", "--only", "fsdp2+tp-4"])
    said = capsys.readouterr().out
    assert code == 0, said
    first, row, last = said.splitlines()
    assert "no GPU takes part in this check" in first
    assert row.startswith("fsdp2+tp-4    1 rank (a mesh of one, not of 4): ")
    assert last.startswith("1 of 1 layouts are equal to one process")


def test_without_a_gpu_nothing_is_claimed(check, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert check.main(["--ranks"]) == 2
    said = capsys.readouterr().out
    assert "no CUDA device here" in said
    assert "nothing ran" in said
