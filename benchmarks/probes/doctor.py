"""Measures the doctor on about 90,000 keys of a model of experts, in CPU and wall seconds: `doctor`.

`sized` has other names and other sizes than the model, with a config whose fields are searched for the sizes: no map
cures a size, the finding names the field.
"""

from __future__ import annotations

import json
import time

from shardload.diagnosis import diagnose
from shardload.diagnosis.finding import Case
from tests.diagnosis.headers import cures, keys, refs

LAYERS, EXPERTS = 116, 256
FIELD = "set moe_intermediate_size to 64"
SHAPES = {"gate": (64, 32), "up": (64, 32), "down": (32, 64)}
CONFIG = {
    "hidden_size": 32,
    "moe_intermediate_size": 96,
    "n_routed_experts": EXPERTS,
    "num_hidden_layers": LAYERS,
    **{f"field_{number}_size": number for number in range(100, 200)},
}


def main() -> None:
    stored, cases_of = cases(LAYERS)
    figures: dict[str, float] = {"keys": len(stored)}
    for name, wanted in cases_of.items():
        figures |= {f"{name}_{figure}": value for figure, value in measured(stored, wanted).items()}
    print(json.dumps(figures))


def measured(stored, wanted):
    """Return the figures of one case; what it made is gone before the next one begins."""
    headers = refs(stored)
    clock, cpu = time.perf_counter(), time.process_time()
    case = Case.of(wanted, headers, CONFIG)
    found = diagnose(case)
    spent = {"s": time.perf_counter() - clock, "cpu_s": time.process_time() - cpu}
    named = any(FIELD in finding.cure for finding in found)
    return spent | {"map_is_whole": cures(case), "field_is_named": named}


def cases(layers):
    """Return what is stored, and {name: what the model wants} of each case."""
    stored = experts(layers, "_orig_mod.model.layers.{}.mlp.experts.{}.", "{}_proj") | rest(
        layers,
        "_orig_mod.model.layers.{}.",
        "self_attn.{}_proj",
        ("input_layernorm", "post_attention_layernorm"),
    )
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    renamed = experts(layers, "transformer.h.{}.ffn.experts.{}.", "{}", names)
    renamed |= rest(layers, "transformer.h.{}.", "attn.w{}", ("attention_norm", "ffn_norm"))
    stacked = keys((EXPERTS, 128, 32), "model.layers.{}.mlp.experts.gate_up_proj", layers)
    stacked |= keys((EXPERTS, 32, 64), "model.layers.{}.mlp.experts.down_proj", layers)
    stacked |= rest(
        layers, "model.layers.{}.", "self_attn.{}_proj", ("input_layernorm", "post_attention_layernorm")
    )
    same = {key.removeprefix("_orig_mod."): shape for key, shape in stored.items()}
    sized = {key: tuple(96 if size == 64 else size for size in shape) for key, shape in renamed.items()}
    return stored, {"wrapped": same, "renamed": renamed, "stacked": stacked, "sized": sized}


def experts(layers, block, name, names=None):
    found = {}
    for part, shape in SHAPES.items():
        key = f"{block}{name.format((names or {}).get(part, part))}.weight"
        found |= keys(shape, key, layers, EXPERTS)
    return found


def rest(layers, block, attention, norms):
    found = {}
    for letter in "qkvo":
        found |= keys((32, 32), f"{block}{attention.format(letter)}.weight", layers)
    for norm in norms:
        found |= keys((32,), f"{block}{norm}.weight", layers)
    return found


if __name__ == "__main__":
    main()
