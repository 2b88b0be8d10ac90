"""Measures the extra time of a call of one adapted Linear: `call ROWS MODE`, MODE is inference or training."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from statistics import median

import peft
import torch
from torch import nn

import shardload
from benchmarks.probes.layers import RANK, WIDTH
from benchmarks.probes.pairs import in_turn, over


def main() -> None:
    rows, mode = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare, ours, theirs = (nn.Sequential(nn.Linear(WIDTH, WIDTH)) for _ in range(3))
    shardload.attach_lora(ours, RANK, 16, ["0"])
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["0"]))
    layers = {"bare": bare[0], "ours": ours[0], "peft": theirs.base_model.model[0]}
    same(layers["ours"], layers["peft"])
    for layer in layers.values():
        layer.train(mode == "training")
    x = torch.randn(rows, WIDTH)
    with torch.inference_mode() if mode == "inference" else nullcontext():
        calls = {name: lambda layer=layer: layer(x) for name, layer in layers.items()}
        rounds = in_turn(calls, seconds=6, block=1000)
    figures = {f"{name}_s": median(seconds) for name, seconds in rounds.items()}
    figures |= {"ours_over_s": over(rounds, "ours", "bare"), "peft_over_s": over(rounds, "peft", "bare")}
    figures["share_of_peft"] = figures["ours_over_s"] / figures["peft_over_s"]
    print(json.dumps(figures))


def same(ours, theirs):
    """Give both layers the same weights, and raise unless their outputs are equal."""
    with torch.no_grad():
        nn.init.normal_(ours.lora_B["default"].weight)
        theirs.lora_A["default"].weight.copy_(ours.lora_A["default"].weight)
        theirs.lora_B["default"].weight.copy_(ours.lora_B["default"].weight)
        theirs.base_layer.weight.copy_(ours.weight)
        theirs.base_layer.bias.copy_(ours.bias)
        x = torch.randn(3, WIDTH)
        torch.testing.assert_close(ours(x), theirs(x))


if __name__ == "__main__":
    main()
