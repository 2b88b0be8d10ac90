"""Measures the doctor on about 90,000 keys of a model of experts, in CPU and wall seconds: `doctor`."""

from __future__ import annotations

import json
import time

from shardload.diagnosis import diagnose
from tests.diagnosis.headers import case_of, cures, keys

LAYERS, EXPERTS = 116, 256
SHAPES = {"gate": (64, 32), "up": (64, 32), "down": (32, 64)}


def main() -> None:
    stored = experts("_orig_mod.model.layers.{}.mlp.experts.{}.", "{}_proj") | rest(
        "_orig_mod.model.layers.{}.", "self_attn.{}_proj", ("input_layernorm", "post_attention_layernorm")
    )
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    renamed = experts("transformer.h.{}.ffn.experts.{}.", "{}", names)
    renamed |= rest("transformer.h.{}.", "attn.w{}", ("attention_norm", "ffn_norm"))
    stacked = keys((EXPERTS, 128, 32), "model.layers.{}.mlp.experts.gate_up_proj", LAYERS)
    stacked |= keys((EXPERTS, 32, 64), "model.layers.{}.mlp.experts.down_proj", LAYERS)
    stacked |= rest("model.layers.{}.", "self_attn.{}_proj", ("input_layernorm", "post_attention_layernorm"))
    same = {key.removeprefix("_orig_mod."): shape for key, shape in stored.items()}
    figures: dict[str, float] = {"keys": len(stored)}
    for name, wanted in (("wrapped", same), ("renamed", renamed), ("stacked", stacked)):
        case = case_of(stored, wanted)
        clock, cpu = time.perf_counter(), time.process_time()
        diagnose(case)
        figures[f"{name}_s"] = time.perf_counter() - clock
        figures[f"{name}_cpu_s"] = time.process_time() - cpu
        figures[f"{name}_cured"] = cures(case)
    print(json.dumps(figures))


def experts(block, name, names=None):
    found = {}
    for part, shape in SHAPES.items():
        found |= keys(shape, f"{block}{name.format((names or {}).get(part, part))}.weight", LAYERS, EXPERTS)
    return found


def rest(block, attention, norms):
    found = {}
    for letter in "qkvo":
        found |= keys((32, 32), f"{block}{attention.format(letter)}.weight", LAYERS)
    for norm in norms:
        found |= keys((32,), f"{block}{norm}.weight", LAYERS)
    return found


if __name__ == "__main__":
    main()
