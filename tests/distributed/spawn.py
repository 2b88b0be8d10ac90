"""Starts the ranks of a test as processes of their own on loopback, with the environment that torchrun gives.

They are forked from one server that has imported torch and shardload and done nothing yet: to import these takes a rank
longer than most of what it is started for.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_ALL = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_LOGS": "-all"}
IMPORTED = (
    "torch._dynamo",
    "shardload.adapters.adapter_folder",
    "shardload.adapters.attach_lora",
    "shardload.load",
    "shardload.loading.over_ranks",
    "shardload.loading.read_once",
    "shardload.placement.layout",
    "shardload.saving",
    "shardload.writing.collective",
    "tests.distributed.row",
)
"""What the server of ranks imports once for all of them."""


@dataclass
class Rank:
    """How one rank ended: its exit code, what it printed, and what it said besides."""

    code: int
    out: str
    said: str

    @property
    def lines(self) -> list[dict]:
        """The lines of JSON that it printed."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


def run_ranks(
    module: str, world: int, *arguments: object, timeout: float = 600, env: dict | None = None
) -> list[Rank]:
    """Run a module's `main(*arguments)` on every rank, and wait for all; a rank that hangs is killed."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    given = [str(each) for each in arguments]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(rank) for rank in range(world)]
        processes = [
            server().Process(
                target=_rank,
                args=(
                    module,
                    given,
                    {**common, "RANK": out.name, "LOCAL_RANK": out.name, **(env or {})},
                    out,
                ),
                daemon=True,
            )
            for out in outs
        ]
        for process, out in zip(processes, outs, strict=True):
            out.touch()
            out.with_suffix(".said").touch()
            process.start()
        ends = time.monotonic() + timeout
        return [_ended(process, out, ends) for process, out in zip(processes, outs, strict=True)]


def server():
    """Return the context that forks ranks; its server is started, or runs already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    before = {name: os.environ.get(name) for name in OF_ALL}
    os.environ.update(OF_ALL)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def _rank(module: str, arguments: list[str], env: dict[str, str], out: Path) -> None:
    """Run one rank, in its process."""
    os.environ.update({**OF_ALL, **env})
    os.chdir(ROOT)
    for descriptor, path in ((1, out), (2, out.with_suffix(".said"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    warnings.simplefilter("ignore")
    sys.argv = [module, *arguments]
    importlib.import_module(module).main(*arguments)


def _ended(process, out: Path, ends: float) -> Rank:
    process.join(max(ends - time.monotonic(), 0))
    hung = process.is_alive()
    if hung:
        process.kill()
        process.join()
    said = out.with_suffix(".said").read_text() + "\n(killed: it hung)" * hung
    return Rank(process.exitcode, out.read_text(), said)


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
