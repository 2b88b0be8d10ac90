"""Random loads, each in a forked process, whose measured memory is held against what was stated for them.

    python -m tests.memory_statements --count 200 --seed 0

A load varies in dtype, format, copy, spill, key map, adapter (attached or merged), ties that are stored twice, loaders
that fuse, missing parameters, and in the number and sizes of its tensors. `report.stated.peak` must be no less than
the RssAnon that the load added, and at most 1.15 times that and 64 MB; `max_memory=plan_load(...).peak_anon` must load.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shardload
from shardload import KeyMap
from tests.tiny import write_checkpoint

MB = 10**6
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Case:
    """One load: the checkpoint's tensors and the keywords of from_pretrained."""

    seed: int
    kind: str
    stored: str
    layers: int
    width: int
    dtype: str
    copy: bool
    spill: bool
    key_map: str
    adapter: str
    tied: bool
    fuses: bool
    extra: bool
    shards: int
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def random(cls, seed: int) -> Case:
        draw = random.Random(seed)
        layers = draw.choice([2, 3, 6, 12, 48, 200])
        total = draw.choice([1, 8, 24, 80]) * MB
        key_map = draw.choice(["", "", "cat", "stack", "split", "transpose", "alias"])
        fuses = not key_map and draw.random() < 0.2
        adapter = "" if key_map or fuses else draw.choice(["", "", "attached", "merged"])
        return cls(
            seed,
            kind=draw.choice(["safetensors", "safetensors", "bin", "legacy"]),
            stored=draw.choice(list(DTYPES)),
            layers=layers,
            width=max(int((total / 2 / 2 / layers) ** 0.5) // 8 * 8, 8),
            dtype=draw.choice(["auto", "auto", *DTYPES]),
            copy=draw.random() < 0.3,
            spill=draw.random() < 0.2,
            key_map=key_map,
            adapter=adapter,
            tied=not adapter and draw.random() < 0.2,
            fuses=fuses,
            extra=draw.random() < 0.2,
            shards=draw.choice([1, 2, 5]),
        )

    def options(self, folder: Path) -> dict[str, Any]:
        """Return the keywords of the load."""
        options: dict[str, Any] = {"dtype": self.dtype, "copy": self.copy}
        if self.key_map:
            options["key_map"] = key_map(self)
        if self.adapter:
            options["adapter"] = folder / "adapter"
        return options


class Fusing(nn.Module):
    """Two stored tensors in one parameter, put together by a hook of the class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * width, width))
        self.register_load_state_dict_pre_hook(self._fuse)

    @staticmethod
    def _fuse(_module, state, prefix, *_):
        if f"{prefix}up" in state:
            state[f"{prefix}weight"] = torch.cat([state.pop(f"{prefix}up"), state.pop(f"{prefix}down")])


class Layer(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        width = case.width
        if case.fuses:
            self.both = Fusing(width)
        elif case.key_map in ("cat", "stack"):
            shape = (2 * width, width) if case.key_map == "cat" else (2, width, width)
            self.both = nn.Module()
            self.both.weight = nn.Parameter(torch.empty(shape))
        else:
            self.up = nn.Linear(width, width, bias=False)
            self.down = nn.Linear(width, width, bias=False)
        if case.key_map == "alias":
            self.again = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)


class Net(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(case) for _ in range(case.layers))
        if case.tied:
            self.head = nn.Linear(case.width, 4 * case.width, bias=False)
            self.embed = nn.Embedding(4 * case.width, case.width)
            self.embed.weight = self.head.weight
        if case.extra:
            self.extra = nn.Linear(case.width, 4 * case.width)


def key_map(case: Case) -> KeyMap:
    up, down = "layers.{}.up.weight", "layers.{}.down.weight"
    made = {
        "cat": KeyMap().cat([up, down], "layers.{}.both.weight"),
        "stack": KeyMap().stack("layers.{}.parts.{n}.weight", "layers.{}.both.weight"),
        "split": KeyMap().split("layers.{}.both.weight", [up, down]),
        "transpose": KeyMap().transpose(up),
        "alias": KeyMap().alias(up, "layers.{}.again.weight"),
    }
    return made[case.key_map]


def state_of(case: Case) -> dict[str, torch.Tensor]:
    """Return the stored tensors; every page differs, so that none is shared."""
    dtype, width = DTYPES[case.stored], case.width
    state: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[name] = torch.randn(shape).to(dtype)

    for layer in range(case.layers):
        prefix = f"layers.{layer}."
        if case.fuses:
            add(f"{prefix}both.up", width, width)
            add(f"{prefix}both.down", width, width)
        elif case.key_map == "split":
            add(f"{prefix}both.weight", 2 * width, width)
        elif case.key_map == "stack":
            add(f"{prefix}parts.0.weight", width, width)
            add(f"{prefix}parts.1.weight", width, width)
        else:
            add(f"{prefix}up.weight", width, width)
            add(f"{prefix}down.weight", width, width)
        add(f"{prefix}norm.weight", width)
        add(f"{prefix}norm.bias", width)
    if case.tied:
        add("head.weight", 4 * width, width)
        state["embed.weight"] = state["head.weight"].clone()
    return state


def write(case: Case, folder: Path) -> dict[str, Any]:
    state = state_of(case)
    names = list(state)
    random.Random(case.seed).shuffle(names)
    state = {name: state[name] for name in names}
    if case.kind == "legacy":
        folder.joinpath("base").mkdir(parents=True)
        torch.save(state, folder / "base" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        write_checkpoint(folder / "base", state, shards=case.shards, kind=case.kind)
    if case.adapter:
        model = Net(case)
        targets = [f"layers.{layer}.up" for layer in range(case.layers)]
        shardload.attach_lora(model, r=8, alpha=8, targets=targets)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter) * 0.01)
        shardload.save_adapter(model, folder / "adapter")
        drop_fingerprint(folder / "adapter")
    return {}


def drop_fingerprint(folder: Path) -> None:
    """Leave out by what load_adapter knows the base again: this one was never loaded."""
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    torch.save(tensors, folder / "adapter_model.bin")
    path.unlink()


def anon() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def load(case: Case, folder: Path) -> dict[str, Any]:
    """Carry the case out in this process and return its figures."""
    options = case.options(folder)
    # What a class's own loaders join is known from its shell alone, what the class initialises too.
    shell = shardload.build_shell(lambda: Net(case)) if case.fuses or case.extra else None
    plan = shardload.plan_load(folder / "base", shell=shell, **options)
    del shell
    if case.adapter:
        options["merge"] = case.adapter == "merged"
    if case.spill:
        options["spill"] = folder
    if case.extra:
        options["allow_missing"] = ["extra.*"]
    if case.adapter != "merged":
        options["max_memory"] = plan.peak_anon
    gc.collect()
    peak, stop = [0], threading.Event()

    torch.set_num_threads(2)

    def sample() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], anon())
            time.sleep(0.002)

    sampler = threading.Thread(target=sample)
    before = anon()
    sampler.start()
    model = shardload.from_pretrained(
        folder / "base", model_class=lambda _: Net(case), config={}, progress=False, **options
    )
    for parameter in model.parameters():
        parameter.detach().view(-1)[::512].float().sum() if parameter.is_contiguous() else parameter.sum()
    stop.set()
    sampler.join()
    measured = max(peak[0], anon()) - before
    return {"measured": measured, "stated": shardload.report_of(model).stated.peak, "planned": plan.peak_anon}


def in_a_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a function returns in a forked process: what malloc keeps of one load must not serve another."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    return answer


def measured(case: Case) -> Case:
    """Write a case's files and carry it out, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="shardload-stated-") as name:
        folder = Path(name)
        case.figures = in_a_child(lambda: write(case, folder)) or in_a_child(lambda: load(case, folder))
    return case


def understated(case: Case) -> bool:
    """Whether a load took more than was stated, or was refused what its own plan allows."""
    figures = case.figures
    return "error" in figures or figures["measured"] > figures["stated"]


def overstated(case: Case) -> bool:
    """Whether much more was stated than a load took."""
    return "error" not in case.figures and case.figures["stated"] > 1.15 * case.figures["measured"] + 64 * MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases = []
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        case = measured(Case.random(seed))
        cases.append(case)
        if understated(case) or overstated(case):
            print("UNDER" if understated(case) else "over ", case, flush=True)
    under, over = sum(map(understated, cases)), sum(map(overstated, cases))
    print(f"{len(cases)} loads: {under} understated, {over} overstated")
    sys.exit(under > 0 or (over > 0.05 * len(cases) and len(cases) >= 100))


if __name__ == "__main__":
    main()
