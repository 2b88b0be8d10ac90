"""Loads over ranks of which one fails, run on every rank: `python -m tests.distributed.faults KIND,KIND FOLDER`."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import shardload
from tests.distributed.spawn import say

FAILS = 1  # the rank that fails


class Net(nn.Sequential):
    def __init__(self, width: int = 16) -> None:
        super().__init__(*(nn.Linear(width, width) for _ in range(4)))


class Random(Net):
    """Has a parameter that no checkpoint holds, and that its class draws."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(6, 4))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def spoil(kind: str, folder: Path) -> None:
    """Do to the own copy of the checkpoint what `kind` says, after its headers were read."""
    last = shards(folder)[-1]
    if kind == "missing":
        last.unlink()
    elif kind == "corrupt":
        with last.open("r+b") as file:
            file.truncate(last.stat().st_size - 100)
    elif kind == "changed":
        last.write_bytes(last.read_bytes())
    elif kind == "killed":
        os._exit(9)


def options(kind: str, rank: int) -> dict:
    given: dict = {"timeout": 3 if kind in ("late", "killed") else 60}
    if kind == "memory" and rank == FAILS:
        given["max_memory"] = 1000
    if kind == "random":
        given["allow_missing"] = ["extra"]
    return given


def load(kind: str, folder: Path) -> None:
    rank = dist.get_rank()
    make = {"random": Random, "mismatch": lambda: Net(12)}.get(kind, Net)
    shell = shardload.build_shell(make)
    torch.manual_seed(rank)
    drawn = torch.get_rng_state()
    fully_shard(shell.model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    before = dict(shell.model.named_parameters())
    checkpoint = shardload.open_checkpoint(folder)
    if rank == FAILS:
        spoil(kind, folder)
        if kind == "late":
            time.sleep(8)
    began = time.monotonic()
    said = {"error": None, "rank": None, "text": ""}
    try:
        shardload.fill(shell, checkpoint, **options(kind, rank))
    except shardload.ShardloadError as error:
        said = {"error": type(error).__name__, "rank": error.rank, "text": str(error)}
    now = dict(shell.model.named_parameters())
    extra = getattr(shell.model, "extra", None)
    say(
        **said,
        kind=kind,
        seconds=time.monotonic() - began,
        as_before=all(now[name] is before[name] for name in before),
        on_meta=any(parameter.is_meta for parameter in now.values()),
        state_kept=torch.equal(drawn, torch.get_rng_state()),
        extra=extra.full_tensor().tolist() if isinstance(extra, DTensor) and not extra.is_meta else None,
    )


def main(kinds: str, folder: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for kind in kinds.split(","):
        load(kind, Path(folder) / kind / str(dist.get_rank()))  # the ranks share no folder
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
