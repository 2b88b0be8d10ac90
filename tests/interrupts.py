"""Ctrl-C at every kind of moment of a load: `python -m tests.interrupts --step 5` counts what it leaves behind.

A profiler raises a real signal at the n-th event of a load: the begin of a function of Python or the end of one of C.
There Python handles signals, and at the ends of loops. Every step-th event is tried, in one process, as in a notebook
that goes on after each Ctrl-C.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import shardload

EVENTS = frozenset({"call", "c_return"})
OPTIONS = {"mapped": {}, "cast": {"dtype": "float16"}, "copied": {"copy": True}}
QUANTISED = {
    "int8": {"load_in_8bit": True, "dtype": "float16"},
    "4 bits": {"load_in_4bit": True, "dtype": "float16"},
}
"""Those that need bitsandbytes."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2, bias=False)
        self.register_buffer("table", torch.arange(4) / 4, persistent=False)


class Bell:
    """Rings once, at the n-th event; counts the events."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def __call__(self, _frame: FrameType, event: str, _arg: object) -> None:
        if event in EVENTS:
            self.count += 1
            if self.count == self.at:
                signal.raise_signal(signal.SIGUSR1)


def names_of_torch() -> dict[str, object]:
    """Return the names of torch that a constructor meets, with what each stands for."""
    owners = (torch.Tensor, nn.Module, nn.Parameter, nn.init, nn.Linear)
    return {f"{owner.__name__}.{name}": value for owner in owners for name, value in vars(owner).items()}


def state() -> dict[str, object]:
    """Return what a load may leave changed in this process."""
    return {
        "modes": torch._C._len_torch_function_stack(),
        "device": str(nn.Linear(1, 1).weight.device),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "names": [name for name, value in names_of_torch().items() if NAMES.get(name) is not value],
        "threads": [thread.name for thread in threading.enumerate()],
    }


NAMES = names_of_torch()


def interrupted(load: Callable[[], object], at: int) -> tuple[bool, int]:
    """Run `load` with Ctrl-C at one event; return whether it was interrupted, and the number of events."""
    bell = Bell(at)
    try:
        try:
            sys.setprofile(bell)
            load()
        finally:
            sys.setprofile(None)
    except KeyboardInterrupt:
        return True, bell.count
    return False, bell.count


def sweep(options: dict[str, object], step: int, first: int = 1) -> Counter[str]:
    """Interrupt a load at every step-th event; return what was left behind, how often, and "tries"."""
    folder = tempfile.mkdtemp()
    saved = Net()
    shardload.save(saved, folder)

    def load() -> nn.Module:
        return shardload.from_pretrained(folder, model_class=lambda _config: Net(), config={}, **options)

    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    load()
    _, events = interrupted(load, -1)
    before = state()
    left: Counter[str] = Counter(tries=0)
    for at in range(first, events, step):
        left["tries"] += 1
        interrupted(load, at)
        now = state()
        left.update(f"{name}: {now[name]}" for name in before if now[name] != before[name])
    gc.collect()
    left["descriptors"] = sum(Path(folder).name in path for path in map(_target, os.listdir("/proc/self/fd")))
    model = load()
    left["wrong weights"] = (
        sum(
            not torch.equal(one.float(), other)
            for one, other in zip(model.parameters(), saved.parameters(), strict=True)
        )
        if "dtype" not in options
        else 0
    )
    return left


def sweep_saves(step: int, first: int = 1) -> Counter[str]:
    """Interrupt a save at every step-th event; return "tries", and how many next saves into that folder failed."""
    model = Net()
    top = Path(tempfile.mkdtemp())

    def save() -> object:
        return shardload.save(model, top / str(len(os.listdir(top))))

    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    save()
    _, events = interrupted(save, -1)
    left: Counter[str] = Counter(tries=0)
    for at in range(first, events, step):
        left["tries"] += 1
        folder = top / f"at {at}"
        interrupted(lambda folder=folder: shardload.save(model, folder), at)  # type: ignore[misc]
        try:
            shardload.save(model, folder)
        except shardload.ShardloadError as error:
            left[str(error)] += 1
    gc.collect()
    left["descriptors"] = sum(top.name in path for path in map(_target, os.listdir("/proc/self/fd")))
    return left


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def main() -> None:
    """Print, for each way to load, the tries and what was left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.interrupts", description=__doc__)
    parser.add_argument("--step", type=int, default=3, help="try every n-th event (default: 3)")
    step = parser.parse_args().step
    there = importlib.util.find_spec("bitsandbytes") is not None
    for name, options in {**OPTIONS, **(QUANTISED if there else {})}.items():
        print(name, dict(sweep(options, step)))
    print("saved", dict(sweep_saves(step)))


if __name__ == "__main__":
    main()
