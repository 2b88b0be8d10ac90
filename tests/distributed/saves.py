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
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import shardload
from tests.distributed.nets import NETS
from tests.distributed.pipeline import filled_stage
from tests.distributed.row import LAYOUTS
from tests.distributed.spawn import say

FAILS = 1
SOME = [1, 2]  # ranks of four that hold a model by themselves


def save(case: str, folder: Path) -> dict:
    layout, net, *trouble = case.split(":")
    rank = dist.get_rank()
    _, shard, shape, names = LAYOUTS[layout]
    kind = NETS[net]
    mesh = (
        DeviceMesh("cpu", SOME) if "some" in trouble else init_device_mesh("cpu", shape, mesh_dim_names=names)
    )
    if mesh.get_coordinate() is None:
        return {}
    key_map = getattr(kind, "key_map", None)
    if layout.startswith("pipeline"):
        given = {"key_map": key_map}
        model, _ = filled_stage(net, kind, folder / net, mesh, shard, given, adapter="adapter" in trouble)
    else:
        shell = shardload.build_shell(kind)
        shard(shell.model, mesh)
        shardload.fill(shell, shardload.open_checkpoint(folder / net), key_map=key_map)
        model = shell.model
    out = folder / "out" / case
    if "adapter" in trouble:
        return {"files": [file.name for file in shardload.save_adapter(model, out, timeout=60)]}
    if "other" in trouble and rank >= SOME[1]:  # all of the last stage
        model.embed.weight = torch.nn.Parameter(torch.zeros(3, 3))
    if "extra" in trouble and rank == FAILS:
        model.register_buffer("extra", torch.zeros(2))
        model.layers[0].scale = torch.nn.Parameter(torch.ones(2))
    groups = len(dist.distributed_c10d._world.pg_map)
    if "again" in trouble:
        shardload.save(model, out, key_map=key_map)
    if rank == FAILS and "full" in trouble:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    if rank == FAILS and "killed" in trouble:
        # As a killed process ends: in the middle, and without a word.
        torch.distributed.batch_isend_irecv = lambda _: os._exit(9)
    files = shardload.save(model, out, key_map=key_map, max_shard_size="60kB", timeout=60)
    if rank == FAILS and "full" in trouble:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    left = len(dist.distributed_c10d._world.pg_map) - groups
    return {"files": [file.name for file in files], "groups": left}


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
