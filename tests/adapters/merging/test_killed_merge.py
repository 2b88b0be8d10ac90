"""A merge that is killed: SIGKILL at twenty seeded moments of a real process, then the same call again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch

from shardload import NotFoundError, open_checkpoint
from shardload.writing.staging import NAME
from tests.adapters import tiny
from tests.tiny import write_checkpoint

KILLS = 20
WIDTH, LAYERS = 768, 14

# Processes are forked from one that has imported torch and computed nothing, so that a kill costs no start.
DRIVER = """
import json, os, random, shutil, signal, sys, time
import torch
import shardload.adapters.merging, shardload.cli.merge
from shardload import merge_to_disk
torch.set_num_threads(1)
base, adapter, root, kills = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

def start(out):
    child = os.fork()
    if child == 0:
        try:
            merge_to_disk(base, adapter, out, rounding="stochastic", seed=5, progress=False)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def whole(out):
    began = time.perf_counter()
    status = os.waitpid(start(out), 0)[1]
    return os.waitstatus_to_exitcode(status), time.perf_counter() - began

code, seconds = whole(f"{root}/undisturbed")
assert code == 0
moments = random.Random(20)
results = []
for attempt in range(5 * kills):
    number = len(results)
    out = f"{root}/{number}"
    # Stratified: each run has its own twentieth of the time, so that no phase is left out.
    wait = (number + moments.random()) / kills * seconds
    child = start(out)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        # It was done before: this machine is quicker now than in the undisturbed run.
        seconds *= 0.8
        shutil.rmtree(out)
        continue
    visible = sorted(os.listdir(out)) if os.path.isdir(out) else []
    hidden = os.path.join(out, ".shardload-output")
    finished = sorted(os.listdir(hidden)) if os.path.isdir(hidden) else []
    results.append({"number": number, "wait": wait, "code": code, "visible": visible, "staging": finished})
    if len(results) == kills:
        break
print(json.dumps(results))
"""

AGAIN = """
import json, sys
from shardload import merge_to_disk
base, adapter, *outs = sys.argv[1:]
resumed = [
    merge_to_disk(base, adapter, out, rounding="stochastic", seed=5, progress=False).written.resumed for out in outs
]
print(json.dumps(resumed))
"""


def run(code, *args):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, args)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def is_absent(folder):
    """Whether there is nothing that could be taken for a checkpoint."""
    try:
        open_checkpoint(folder)
    except NotFoundError:
        return True
    return False


def test_killed_at_twenty_moments(tmp_path):
    random = torch.Generator().manual_seed(0)
    state = {
        f"layers.{n}.weight": torch.randn(WIDTH, WIDTH, generator=random).bfloat16() for n in range(LAYERS)
    }
    base = write_checkpoint(tmp_path / "base", state, shards=7, config={"model_type": "x"})
    tensors = {}
    for n in range(LAYERS):
        prefix = f"{tiny.PREFIX}layers.{n}.lora_"
        tensors[f"{prefix}A.weight"] = torch.randn(4, WIDTH, generator=random)
        tensors[f"{prefix}B.weight"] = torch.randn(WIDTH, 4, generator=random) / 100
    adapter = tiny.write(tmp_path / "lora", tensors, tiny.config(r=4))
    killed = run(DRIVER, base, adapter, tmp_path, KILLS)
    wanted = contents(tmp_path / "undisturbed")
    assert len(wanted) == 9
    assert [result["code"] for result in killed] == [-9] * KILLS
    stages = {len(result["staging"]) for result in killed}
    assert len(stages) >= 4, killed  # kills fell into different shards

    unfinished = []
    for result in killed:
        out = tmp_path / str(result["number"])
        if not out.exists():
            continue
        if "model.safetensors.index.json" in result["visible"]:
            found = contents(out) if not (out / NAME).exists() else None
            assert found is None or found == wanted
        elif not is_absent(out):
            shards = [name for name in wanted if name.endswith(".safetensors")]
            assert all((out / name).read_bytes() == wanted[name] for name in shards)
        if result["code"] != 0 and (
            "model.safetensors.index.json" not in result["visible"] or (out / NAME).exists()
        ):
            unfinished.append(out)
    assert len(unfinished) >= KILLS // 3
    resumed = run(AGAIN, base, adapter, *unfinished)
    assert any(resumed)  # shards that were complete were not written twice
    for out in unfinished:
        assert contents(out) == wanted
