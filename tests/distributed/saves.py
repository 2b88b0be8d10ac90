"""Saves of a sharded model, run on every rank: `python -m tests.distributed.saves CASE,CASE FOLDER`."""

from __future__ import annotations

import os
import resource
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import shardload
from tests.distributed.nets import NETS
from tests.distributed.row import LAYOUTS
from tests.distributed.spawn import say

FAILS = 1


def save(case: str, folder: Path) -> dict:
    layout, net, *trouble = case.split(":")
    rank = dist.get_rank()
    _, shard, shape, names = LAYOUTS[layout]
    kind = NETS[net]
    shell = shardload.build_shell(kind)
    shard(shell.model, init_device_mesh("cpu", shape, mesh_dim_names=names))
    key_map = getattr(kind, "key_map", None)
    shardload.fill(shell, shardload.open_checkpoint(folder / net), key_map=key_map)
    out = folder / "out" / case
    if "again" in trouble:
        shardload.save(shell.model, out, key_map=key_map)
    if rank == FAILS and "full" in trouble:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    if rank == FAILS and "killed" in trouble:
        # As a killed process ends: in the middle, and without a word.
        torch.distributed.batch_isend_irecv = lambda _: os._exit(9)
    files = shardload.save(shell.model, out, key_map=key_map, max_shard_size="60kB", timeout=60)
    if rank == FAILS and "full" in trouble:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"files": [file.name for file in files]}


def main(cases: str, folder: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for case in cases.split(","):
        said: dict = {"error": None, "text": "", "files": []}
        try:
            said |= save(case, Path(folder))
        except shardload.ShardloadError as error:
            said |= {"error": type(error).__name__, "text": str(error)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        say(case=case, **said)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
