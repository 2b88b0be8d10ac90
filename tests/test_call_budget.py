"""What a load costs a tensor, in Python calls and in memory over the built shell: counted, not timed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from shardload import build_shell, fill, open_checkpoint
from tests.calls import calls_of
from tests.tiny import random_state, run_python, write_checkpoint

CALLS_A_TENSOR = 75  # 70 when this was written


def linears(count: int) -> nn.Module:
    return nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(count))


def written(folder, count: int, shards: int):
    state = {f"{number}.weight": torch.ones(4, 4) for number in range(count)}
    return write_checkpoint(folder, state, shards=shards)


def calls_of_a_fill(folder, count: int) -> int:
    """Return the Python functions that are entered while a shell of `count` Linears is filled."""
    shell, checkpoint = build_shell(lambda: linears(count)), open_checkpoint(folder)
    return calls_of(lambda: fill(shell, checkpoint, progress=False), of_c=False)


def test_calls_grow_with_the_tensors_and_not_faster(tmp_path):
    counts = (200, 400, 800)
    calls = [calls_of_a_fill(written(tmp_path / str(count), count, 2), count) for count in counts]
    first, second = (calls[1] - calls[0]) / 200, (calls[2] - calls[1]) / 400
    assert first == pytest.approx(second, rel=0.05)
    assert 1 < second <= CALLS_A_TENSOR


def test_a_shard_costs_no_more_than_two_tensors(tmp_path):
    one = calls_of_a_fill(written(tmp_path / "one", 600, 1), 600)
    sixty = calls_of_a_fill(written(tmp_path / "sixty", 600, 60), 600)
    assert 0 < sixty - one <= 60 * 150  # 132 when this was written


MEMORY = """
import json, sys
from torch import nn
from shardload import build_shell, fill, open_checkpoint
from shardload._system.process_memory import measure

def linears(count):
    return nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(count))

fill(build_shell(lambda: linears(8)), open_checkpoint(sys.argv[1]), progress=False)
checkpoint, shell = open_checkpoint(sys.argv[2]), build_shell(lambda: linears(5000))
before = measure().anon
report = fill(shell, checkpoint, progress=False)
print(json.dumps({"added": max(measure().anon, report.memory.peak.anon) - before, "stated": report.stated.peak}))
"""


def test_a_fill_adds_32_mb_and_2_kb_a_tensor_to_the_shell(tmp_path):
    small, large = written(tmp_path / "small", 8, 1), written(tmp_path / "large", 5000, 3)
    got = json.loads(run_python(MEMORY, str(small), str(large)).stdout)
    assert got["added"] <= 32 * 10**6 + 2_000 * 5000
    assert got["added"] <= got["stated"]


class RenamingRoot(nn.Module):
    """A root hook that renames: the whole checkpoint has to pass through it at once."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
        self._register_load_state_dict_pre_hook(self._rename)

    def _rename(self, state, prefix, *_args) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}old.")]:
            state[key.replace("old.", "layers.", 1)] = state.pop(key)


@pytest.mark.parametrize("hooked", [False, True])
def test_work_is_linear_in_the_number_of_tensors(tmp_path, hooked):
    """torch's own load a shard at a time is quadratic; here twice the tensors are at most 2.2 times the calls."""
    counts = []
    for layers in (100, 200, 400):
        make = (lambda n=layers: RenamingRoot(n)) if hooked else (lambda n=layers: Many(n))
        state = random_state(make())
        checkpoint = open_checkpoint(write_checkpoint(tmp_path / f"{layers}", state, shards=10))
        shell = build_shell(make)
        counts.append(calls_of(lambda shell=shell, checkpoint=checkpoint: fill(shell, checkpoint)))
    assert counts[2] - counts[1] < 2.2 * (counts[1] - counts[0])


class Many(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
