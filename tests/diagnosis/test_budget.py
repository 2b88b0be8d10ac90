"""Ninety thousand keys: how often names are weighed and keys are cut up, the memory, and the calls for each key."""

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
    assert int(splits) <= keys  # a module's tensors share the cut of its path
    assert int(nbytes) < 300 * 2**20
    assert cured == "True"
    assert codes == ["E-WRAP", "E-RENAME"]


CALLS = """
import sys
from benchmarks.probes.doctor import CONFIG, cases
from shardload.diagnosis import diagnose
from shardload.diagnosis.finding import Case
from tests.diagnosis.headers import refs

def counted(stored, wanted):
    case, calls = Case.of(wanted, refs(stored), CONFIG), [0]
    def count(frame, event, argument):
        calls[0] += event in {"call", "c_call"}
    sys.setprofile(count)
    try:
        diagnose(case)
    finally:
        sys.setprofile(None)
    return calls[0] / len(stored)

for layers in (9, 18):
    stored, wanted = cases(layers)
    print(len(stored), *(round(counted(stored, keys), 1) for keys in list(wanted.values())[1:]))
"""


def test_the_calls_for_each_key_are_few_and_do_not_grow():
    small, large = (list(map(float, line.split())) for line in run_python(CALLS).stdout.splitlines())
    assert large[0] == 2 * small[0]
    for calls, most in zip(large[1:], (115, 130, 120), strict=True):
        assert calls < most, (small, large)
    assert all(many < few * 1.05 for few, many in zip(small[1:], large[1:], strict=True)), (small, large)


MANY = """
import sys
from shardload.diagnosis import diagnose
from shardload.diagnosis.finding import Case
from shardload.diagnosis.pairing import board
from tests.diagnosis.headers import refs
from tests.diagnosis.many_names import CONFIG, MANY

board._COMPARED = 0  # what a small model may take as well is left out: growth is seen at once

for name, make in MANY.items():
    calls = []
    for count in (160, 320):
        stored, wanted = make(count)
        case = Case.of(wanted, refs(stored), CONFIG)
        calls.append(0)
        def counted(frame, event, argument):
            calls[-1] += event in {"call", "c_call"}
        sys.setprofile(counted)
        try:
            diagnose(case)
        finally:
            sys.setprofile(None)
    print(name, *(each // count for each, count in zip(calls, (160, 320))), sep="; ")
"""


def test_the_calls_for_each_key_do_not_grow_where_every_key_has_a_name_of_its_own():
    for line in run_python(MANY).stdout.splitlines():
        small, large = map(int, line.split("; ")[1:])
        assert large < 1.25 * small + 50, line
        assert large < 8_000, line
