"""Measures attaching and loading four adapters, of which PEFT loads the first ADAPTERS: `attach MODULES ADAPTERS`."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file

import shardload
from benchmarks.probes.layers import Layers, write_adapter


def main() -> None:
    modules, adapters = int(sys.argv[1]), int(sys.argv[2])
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = [write_adapter(Path(scratch, name), modules, seed) for seed, name in enumerate("abcd")]
        # The first load of a process (imports, kernels) is not measured.
        few = [write_adapter(Path(scratch, "few", name), 4, 0) for name in "ab"]
        for load in (ours, theirs):
            load(4, few)
        for who, load, count in (("ours", ours, 4), ("peft", theirs, adapters)):
            for number, seconds in enumerate(load(modules, folders[:count]), 1):
                figures[f"{who}_{number}"] = seconds
    for number in range(1, adapters + 1):
        figures[f"times_{number}"] = figures[f"peft_{number}"] / figures[f"ours_{number}"]
    print(json.dumps(figures))


def ours(modules, folders):
    model = Layers(modules)
    seconds = []
    for number, folder in enumerate(folders):
        seconds.append(timed(lambda: shardload.load_adapter(model, folder, name=f"a{number}")))  # noqa: B023
        check(model.layers, folder, f"a{number}")
    return seconds


def theirs(modules, folders):
    base = Layers(modules)
    wrapped = None
    seconds = []

    def load():
        nonlocal wrapped
        if wrapped is None:
            wrapped = peft.PeftModel.from_pretrained(base, folder, adapter_name=name)
        else:
            wrapped.load_adapter(folder, adapter_name=name)

    for number, folder in enumerate(folders):
        name = f"a{number}"
        seconds.append(timed(load))
        check(wrapped.base_model.model.layers, folder, name)
    return seconds


def timed(load):
    gc.collect()
    start = time.perf_counter()
    load()
    return time.perf_counter() - start


def check(layers, folder, name):
    """Raise unless the first and the last layer have the weights of the file."""
    stored = load_file(folder / "adapter_model.safetensors")
    for number in (0, len(layers) - 1):
        layer = layers[number].o
        for part, factors in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            if not torch.equal(
                factors[name].weight, stored[f"base_model.model.layers.{number}.o.{part}.weight"]
            ):
                raise SystemExit(f"{part} of layer {number} differs from the file")


if __name__ == "__main__":
    main()
