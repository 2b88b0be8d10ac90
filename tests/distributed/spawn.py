"""Starts the ranks of a test as processes of their own on loopback, with the environment that torchrun gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Rank:
    """How one rank ended: its exit code, the JSON lines that it printed, and what it said besides."""

    code: int
    lines: list[dict]
    said: str


def run_ranks(
    module: str, world: int, *arguments: object, timeout: float = 600, env: dict | None = None
) -> list[Rank]:
    """Run `python -m module arguments` on every rank, and wait for all; a rank that hangs is killed."""
    started = start_ranks(module, world, *arguments, env=env)
    ended = []
    for process in started:
        try:
            out, said = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, said = process.communicate()
            said += "\n(killed: it hung)"
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        ended.append(Rank(process.returncode, lines, said))
    return ended


def start_ranks(
    module: str, world: int, *arguments: object, env: dict | None = None
) -> list[subprocess.Popen]:
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "OMP_NUM_THREADS": "1",
                "TORCH_LOGS": "-all",
                **(env or {}),
            },
        )
        for rank in range(world)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def leave() -> None:
    """End this rank when all have come here.

    The ranks meet by the store, and no interpreter is taken down: gloo's thread lets go of a collective's tensors when
    it comes to it, and aborts a process that ends meanwhile. The rank that holds the store goes last.
    """
    import torch.distributed as dist  # not for a test that starts ranks and is none

    store = dist.distributed_c10d._get_default_store()
    rank, ranks = dist.get_rank(), range(dist.get_world_size())
    for place in ("done", "seen"):
        store.set(f"{place}/{rank}", "")
        if place == "done" or rank == 0:
            store.wait([f"{place}/{each}" for each in ranks], timedelta(seconds=300))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def say(**line: object) -> None:
    """Print a JSON line for the test that started this rank."""
    print(json.dumps(line), flush=True)
