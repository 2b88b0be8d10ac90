"""Ninety thousand keys: how often names are weighed and keys are cut up, and the memory that it takes."""

from __future__ import annotations

from tests.tiny import run_python

CODE = """
import sys
from shardload import keys
from shardload.diagnosis.pairing import key_family, likeness

calls = {"score": 0, "split": 0}
score, split = likeness.Likeness.score, keys.split_key

def counted_score(self, old, new):
    calls["score"] += 1
    return score(self, old, new)

def counted_split(key):
    calls["split"] += 1
    return split(key)

likeness.Likeness.score, key_family.split_key = counted_score, counted_split

from shardload.diagnosis import diagnose
from tests.diagnosis.headers import case_of, cures, keys

def resident():
    lines = open("/proc/self/status").read().split("\\n")
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

def experts(block, names, shapes):
    found = {}
    for name, shape in zip(names, shapes):
        counts = (116, 256) if "{}" in name else (116,)
        found |= keys(shape, f"{block}{name}.weight", *counts)
    return found

shapes = [(64, 32), (64, 32), (32, 64), (32, 32), (32, 32), (32, 32), (32, 32), (32,), (32,)]
stored = experts(
    "_orig_mod.model.layers.{}.",
    ["mlp.experts.{}." + name for name in ("gate_proj", "up_proj", "down_proj")]
    + [f"self_attn.{name}_proj" for name in "qkvo"] + ["input_layernorm", "post_attention_layernorm"],
    shapes,
)
wanted = experts(
    "transformer.h.{}.",
    ["ffn.experts.{}." + name for name in ("w1", "w3", "w2")]
    + [f"attn.w{name}" for name in "qkvo"] + ["attention_norm", "ffn_norm"],
    shapes,
)
case = case_of(stored, wanted)
before = resident()
found = diagnose(case)
print(len(stored), calls["score"], calls["split"], resident() - before, cures(case), *(f.code for f in found))
"""


def test_ninety_thousand_keys():
    count, scores, splits, nbytes, cured, *codes = run_python(CODE).stdout.split()
    keys = int(count)
    assert keys > 89_000
    assert int(scores) < 2_000  # families are weighed, never keys
    assert int(splits) <= 3 * keys
    assert int(nbytes) < 300 * 2**20
    assert cured == "True"
    assert codes == ["E-WRAP", "E-RENAME"]
