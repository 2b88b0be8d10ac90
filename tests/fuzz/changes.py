"""Files that are cut, overwritten or replaced while they are loaded: what came of it, in processes that may die.

Each run is a child of its own. `python -m tests.fuzz.changes COUNT` prints one JSON document of outcomes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from shardload import ShardloadError, build_shell, fill, open_checkpoint
from tests.tiny import write_checkpoint

MOMENTS = (
    "after its header was read",
    "while it is loaded",
    "at any time, by another process",
    "once it is in use",
)
READERS = ("mapped", "copy")
CHANGES = ("cut", "overwritten", "replaced")
LAYERS = 24


def make() -> nn.Module:
    return nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(LAYERS)))


def state() -> dict[str, torch.Tensor]:
    return {f"{n}.weight": torch.full((128, 128), float(n + 1)) for n in range(LAYERS)}


def change(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "cut":
        os.truncate(path, size // 3)
    elif how == "overwritten":
        with path.open("r+b") as file:
            file.seek(size // 3)
            file.write(b"\x7f" * (size - size // 3))
    else:
        other = path.with_name("other")
        other.write_bytes(path.read_bytes()[:-4] + b"\x7f\x7f\x7f\x7f")
        other.replace(path)


def child(folder: Path, moment: str, reader: str, how: str, delay: float) -> str:
    """Load, with the change at its moment, and say what came of it."""
    path = next(folder.glob("*.safetensors"))
    checkpoint = open_checkpoint(folder)
    shell = build_shell(make)
    if moment == MOMENTS[0]:
        change(path, how)

    def meanwhile(progress) -> None:
        if moment == MOMENTS[1] and progress.tensors == LAYERS // 4:
            change(path, how)

    other = 0
    if moment == MOMENTS[2]:
        other = os.fork()
        if other == 0:
            time.sleep(delay)
            change(path, how)
            os._exit(0)
    try:
        fill(shell, checkpoint, copy=reader == "copy", progress=meanwhile)
    except ShardloadError as error:
        return type(error).__name__
    finally:
        if other:
            os.waitpid(other, 0)
    if moment == MOMENTS[3]:
        change(path, how)
    right = all(bool((layer.weight == n + 1).all()) for n, layer in enumerate(shell.model))
    return "loaded, right" if right else "loaded, and changed since"


def outcome(moment: str, reader: str, how: str, delay: float) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(Path(name), state(), shards=1)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                said = child(folder, moment, reader, how, delay)
            except BaseException as error:
                said = f"another error: {error!r}"
            os.write(write, said.encode())
            os._exit(0)
        os.close(write)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read().decode()
        return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said


def run(count: int, seed: int = 0) -> dict[str, dict[str, int]]:
    """Return {"moment, reader, change": {outcome: how often}}, `count` runs in all of each reader."""
    torch.set_num_threads(1)  # threads of a parent are not there in its children
    rng = random.Random(seed)
    found: dict[str, Counter[str]] = {}
    for reader in READERS:
        for number in range(count):
            moment = MOMENTS[number % len(MOMENTS)]
            how = CHANGES[number // len(MOMENTS) % len(CHANGES)]
            said = outcome(moment, reader, how, rng.random() * 0.01)
            found.setdefault(f"{moment}, {reader}, {how}", Counter())[said] += 1
    return {key: dict(counts) for key, counts in found.items()}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 100), indent=1))
