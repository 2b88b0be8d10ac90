"""A slice of the random loads whose memory is measured; `python -m tests.memory_statements` runs more."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import shardload
from tests.memory_statements import anon
from tests.tiny import run_python, write_checkpoint

ROOT = Path(__file__).parents[1]


def test_a_slice_of_random_loads_takes_no_more_than_was_stated():
    command = [sys.executable, "-W", "ignore", "-m", "tests.memory_statements", "--count", "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "12 loads: 0 understated" in done.stdout, done.stdout + done.stderr


pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
WIDTH = 2048


def layers(wrap):
    return nn.Sequential(*(wrap(nn.Linear(WIDTH, WIDTH)) for _ in range(4)))


def to_float32(_module, state, *_):
    for key in list(state):
        state[key] = state[key].float().clone()


def hooked():
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))
    model.register_load_state_dict_pre_hook(to_float32)
    return model


def orthogonal():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    nn.init.orthogonal_(model[1].weight)
    return model


CASES = {
    "weight_norm": lambda: layers(nn.utils.weight_norm),
    "spectral_norm": lambda: layers(nn.utils.spectral_norm),
    "a hook that casts": hooked,
    "an initialiser": orthogonal,
}


def filled(make, folder):
    """Fill a shell, which is built before, and return what was stated and what was measured."""
    shell, checkpoint = shardload.build_shell(make), shardload.open_checkpoint(folder)
    options = {"allow_missing": ["1.*"]} if make is orthogonal else {}
    gc.collect()
    peak, stop = [0], threading.Event()

    def sample():
        while not stop.is_set():
            peak[0] = max(peak[0], anon())
            time.sleep(0.001)

    before, sampler = anon(), threading.Thread(target=sample)
    sampler.start()
    report = shardload.fill(shell, checkpoint, **options)
    stop.set()
    sampler.join()
    return {"measured": max(peak[0], anon()) - before, "stated": report.stated.peak}


@pytest.mark.parametrize("name", CASES)
def test_what_a_class_computes_while_it_loads_is_stated(tmp_path, name):
    make = CASES[name]
    state = {key: torch.randn_like(value) for key, value in make().state_dict().items()}
    if make is hooked:
        state = {key: value.to(torch.bfloat16) for key, value in state.items()}
    if make is orthogonal:
        state = {key: value for key, value in state.items() if key.startswith("0.")}
    write_checkpoint(tmp_path, state)
    # In a process that is not forked from this one: there, torch's own threads would be missing.
    code = f"""
import json, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from tests.test_memory_statements import CASES, filled
print(json.dumps(filled(CASES[{name!r}], Path({str(tmp_path)!r}))))
"""
    figures = json.loads(run_python(code).stdout.splitlines()[-1])
    assert figures["measured"] <= figures["stated"], figures


def test_derived_weights_are_stated_in_the_dtype_of_the_load(tmp_path):
    def make():
        return nn.utils.weight_norm(nn.Linear(64, 64, bias=False))

    write_checkpoint(tmp_path, make().state_dict())
    for dtype, size in ((None, 4), (torch.bfloat16, 2)):
        shell = shardload.build_shell(make)
        report = shardload.fill(
            shell, shardload.open_checkpoint(tmp_path), target=shardload.OnDevice(dtype=dtype)
        )
        own = 0 if dtype is None else sum(parameter.nbytes for parameter in shell.model.parameters())
        assert report.stated.anonymous - own == shell.model.weight.nbytes == 64 * 64 * size
