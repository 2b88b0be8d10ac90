"""Loads over ranks of which one fails, run on every rank: `python -m tests.distributed.faults KIND,KIND FOLDER`.

Each kind that ends with "killed" kills the last of the ranks that are left: the next kind goes on with the others.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import shardload
from shardload._system.agreement import Agreement
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


def spoil_before(kind: str, folder: Path) -> None:
    """Do to the own copy of the checkpoint what `kind` says, before it is opened."""
    last = shards(folder)[-1]
    if kind in ("unopened", "unopened-killed"):
        last.unlink()
    elif kind == "garbled":
        last.write_bytes(b"\xff" * 64)
    elif kind == "values":  # of another version, with the same headers
        stored = last.read_bytes()
        last.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))


def spoil(kind: str, folder: Path) -> None:
    """Do to the own copy of the checkpoint what `kind` says, after its headers were read."""
    last = shards(folder)[-1]
    if kind == "missing":
        last.unlink()
    elif kind in ("corrupt", "once-corrupt"):
        with last.open("r+b") as file:
            file.truncate(last.stat().st_size - 100)
    elif kind == "changed":
        last.write_bytes(last.read_bytes())
    elif kind == "late":
        time.sleep(5)
    elif kind == "early-killed":
        die()


def die(_progress: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def options(kind: str, *, fails: bool) -> dict:
    given: dict = {"timeout": 3 if kind == "late" else 60}
    if kind == "memory" and fails:
        given["max_memory"] = 1000
    if kind == "random":
        given["allow_missing"] = ["extra"]
    if kind in ("killed", "once-killed") and fails:
        given["progress"] = die  # while it reads
    if kind.startswith("once"):
        given["read"] = "once"
    return given


def meshes_of(kinds: list[str]) -> list:
    """Return the mesh of each kind: made before a rank is killed, as all ranks have to make it."""
    left = dist.get_world_size()
    made = []
    for kind in kinds:
        if kind.startswith("once"):  # every rank holds the whole
            copies = [[rank] for rank in range(left)]
            made.append(DeviceMesh("cpu", copies, mesh_dim_names=("replicate", "shard")))
        else:
            made.append(DeviceMesh("cpu", list(range(left))))
        left -= kind.endswith("killed")
    return made


def load(kind: str, folder: Path, mesh: DeviceMesh) -> None:
    rank, ranks = dist.get_rank(), mesh.mesh.flatten().tolist()
    fails = rank == (0 if kind == "once-corrupt" else ranks[-1])
    make = {"random": Random, "mismatch": lambda: Net(12)}.get(kind, Net)
    shell = shardload.build_shell(make)
    torch.manual_seed(rank)
    drawn = torch.get_rng_state()
    fully_shard(shell.model, mesh=mesh)
    before = dict(shell.model.named_parameters())
    said = {"error": None, "rank": None, "text": ""}
    looks = counted_looks()
    try:
        if fails:
            spoil_before(kind, folder)
        checkpoint = shardload.open_checkpoint(folder)
        if fails:
            spoil(kind, folder)
        shardload.fill(shell, checkpoint, **options(kind, fails=fails))
    except shardload.ShardloadError as error:
        said = {"error": type(error).__name__, "rank": error.rank, "text": str(error)}
        if kind == "unopened-killed" and fails:
            die()  # as a process ends by an error that nobody catches
    now = dict(shell.model.named_parameters())
    extra = getattr(shell.model, "extra", None)
    say(
        **said,
        kind=kind,
        looks=looks[0],
        as_before=all(now[name] is before[name] for name in before),
        on_meta=any(parameter.is_meta for parameter in now.values()),
        state_kept=torch.equal(drawn, torch.get_rng_state()),
        extra=extra.full_tensor().tolist() if isinstance(extra, DTensor) and not extra.is_meta else None,
    )


def counted_looks() -> list[int]:
    """Count from now on how often this rank looks at what the others say; one that waits pauses between two looks."""
    count, look = [0], Agreement.look

    def counting(self, *given, **options):
        count[0] += 1
        return look(self, *given, **options)

    Agreement.look = counting
    return count


def wait_for_all(kind: str) -> None:
    """Let no rank begin the next kind before all have ended this one."""
    store = distributed_c10d._get_default_store()
    store.set(f"{kind}/{dist.get_rank()}", "")
    store.wait([f"{kind}/{rank}" for rank in range(dist.get_world_size())], timedelta(seconds=60))


def main(said: str, folder: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    kinds = said.split(",")
    for kind, mesh in zip(kinds, meshes_of(kinds), strict=True):
        if dist.get_rank() in mesh.mesh.flatten().tolist():
            load(kind, Path(folder) / kind / str(dist.get_rank()), mesh)  # the ranks share no folder
            if not kind.endswith("killed"):
                wait_for_all(kind)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
