"""`torchrun -m shardload load`: every rank gets its part, and the first one shows one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from shardload import open_checkpoint, save
from shardload.cli.over_ranks import world
from tests.dequantise import test_gptq
from tests.dequantise.packed import folder_of
from tests.distributed.nets import NETS
from tests.distributed.spawn import ROOT, run_ranks

CLASS = "tests.distributed.nets:plain_uneven"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save(NETS["Uneven"](), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_two_ranks_of_torchrun_show_one_table(folder):
    python = [sys.executable, "-W", "ignore", "-m"]
    command = [*python, "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "shardload"]
    done = subprocess.run(
        [*command, "load", str(folder), "--model-class", CLASS],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("slowest: rank") == 1
    assert done.stdout.count("stated before") >= 1


def test_the_first_rank_prints_the_ranks_as_json(folder):
    first, second = run_ranks(
        "tests.distributed.command", 2, "load", folder, "--model-class", CLASS, "--json"
    )
    assert (first.code, second.code) == (0, 0), first.said + second.said
    assert not second.out
    said = json.loads(first.out)
    assert [row["rank"] for row in said["ranks"]] == [0, 1]
    whole = sum(tensor.nbytes for tensor in NETS["Uneven"]().state_dict().values())
    assert sum(row["nbytes"] for row in said["ranks"]) == whole


def test_ranks_that_make_packed_weights_plain_say_so(tmp_path):
    where = folder_of(tmp_path / "gptq", test_gptq.packed()[0], test_gptq.settings())
    given = ("--model-class", "tests.distributed.packed:plain_layer", "--dtype", "bfloat16", "--json")
    first, second = run_ranks("tests.distributed.command", 2, "load", where, *given)
    assert (first.code, second.code) == (0, 0), first.said + second.said
    said = json.loads(first.out)
    assert (said["packing"], said["dtypes"]) == ("GPTQ", {"bfloat16": 1})
    stored = sum(row["nbytes"] for row in said["ranks"])
    assert (
        open_checkpoint(where).nbytes <= stored < 1.5 * open_checkpoint(where).nbytes
    )  # both read the scales' order
    assert all(row["anon_peak"] <= row["stated"] for row in said["ranks"])


def test_a_process_alone_is_one_rank():
    assert world() == 1
