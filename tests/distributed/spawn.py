"""Starts the ranks of a test as processes of their own on loopback, with the environment that torchrun gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
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


def say(**line: object) -> None:
    """Print a JSON line for the test that started this rank."""
    print(json.dumps(line), flush=True)
