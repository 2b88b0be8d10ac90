"""`torchrun -m shardload load`: every rank gets its part, and the first one shows one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch

from shardload import save
from shardload.cli.over_ranks import world
from tests.distributed.nets import NETS
from tests.distributed.spawn import ROOT


def torchrun(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    return subprocess.run(
        [*command, "-m", "shardload", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False,
    )  # fmt: skip


def test_two_ranks_show_one_table(tmp_path):
    torch.manual_seed(0)
    save(NETS["Uneven"](), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    done = torchrun("load", tmp_path, "--model-class", "tests.distributed.nets:plain_uneven")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("slowest: rank") == 1
    assert done.stdout.count("stated before") >= 1
    done = torchrun("load", tmp_path, "--model-class", "tests.distributed.nets:plain_uneven", "--json")
    said = json.loads(done.stdout)
    assert [row["rank"] for row in said["ranks"]] == [0, 1]
    whole = sum(tensor.nbytes for tensor in NETS["Uneven"]().state_dict().values())
    assert sum(row["nbytes"] for row in said["ranks"]) == whole


def test_a_process_alone_is_one_rank():
    assert world() == 1
