"""Measures 32 rows with 32 adapters against 32 rows with one, at width 4096 and rank 8: `batch TOKENS`."""

from __future__ import annotations

import json
import sys
from statistics import median

import peft
import torch
from torch import nn

import shardload
from benchmarks.probes.pairs import in_turn, times

ROWS, WIDTH, RANK = 32, 4096, 8
NAMES = [f"a{number}" for number in range(ROWS)]


def main() -> None:
    tokens = int(sys.argv[1])
    torch.set_num_threads(2)
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)).eval()
    layer = ours[0]
    for name in NAMES:
        shardload.attach_lora(ours, RANK, 16, ["0"], init=False, name=name)
    theirs = peft_layer(layer)
    x = torch.randn(ROWS, tokens, WIDTH)
    scope = shardload.adapter_batch(ours, NAMES)
    shardload.set_adapter(ours, "a0")

    def batch():
        with scope:
            return layer(x)

    with torch.inference_mode():
        torch.testing.assert_close(batch(), theirs(x, adapter_names=NAMES))
        torch.testing.assert_close(layer(x), theirs(x))
        bare = shardload.disable_adapter(ours)

        def base():
            with bare:
                return layer(x)

        contestants = {
            "base": base,
            "one": lambda: layer(x),
            "batch": batch,
            "peft_one": lambda: theirs(x),
            "peft_batch": lambda: theirs(x, adapter_names=NAMES),
        }
        rounds = in_turn(contestants, seconds=10, block=1)
    figures = {f"{name}_s": median(seconds) for name, seconds in rounds.items()}
    figures |= {
        "batch_times_one": times(rounds, "batch", "one"),
        "peft_batch_times_one": times(rounds, "peft_batch", "peft_one"),
        "rounds": len(rounds["one"]),
    }
    print(json.dumps(figures))


def peft_layer(layer):
    """Return PEFT's layer with the same weights."""
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["0"])
    wrapped = peft.get_peft_model(
        nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False)), config, adapter_name="a0"
    )
    for name in NAMES[1:]:
        wrapped.add_adapter(name, config)
    found = wrapped.base_model.model[0].eval()
    with torch.no_grad():
        found.base_layer.weight.copy_(layer.weight)
        for name in NAMES:
            found.lora_A[name].weight.copy_(layer.lora_A[name].weight)
            found.lora_B[name].weight.copy_(layer.lora_B[name].weight)
    return found


if __name__ == "__main__":
    main()
