"""Wrappers: whole segments too many or too few, and a real child of such a name is never lost."""

from __future__ import annotations

import pytest

from shardload.diagnosis.pairing.key_family import families_of
from shardload.diagnosis.pairing.wrapper import WRAPPERS, unwrap

MODEL = {f"layers.{n}.{name}": (4, 4) for n in range(3) for name in ("q.weight", "k.weight")} | {
    "norm.weight": (4,)
}


def unwrapped(stored, wanted=MODEL):
    found = unwrap(families_of(stored), families_of(wanted))
    wrappings, families = found.wrappings, found.families
    keys = [name for f in families for name in f.names]
    for wrapping in wrappings:  # the rule of each does to the keys what was done to the families
        stored = {wrapping.key_map.apply(key): shape for key, shape in stored.items()}
    assert sorted(stored) == sorted(keys)
    return [(wrapping.segments, wrapping.adds) for wrapping in wrappings], stored


@pytest.mark.parametrize("segment", WRAPPERS)
@pytest.mark.parametrize("where", ["front", "middle"])
def test_a_wrappers_segment_is_removed_wherever_it_stands(segment, where):
    def wrap(key):
        first, _, rest = key.partition(".")
        return f"{segment}.{key}" if where == "front" else f"{first}.{segment}.{rest}"

    changes, keys = unwrapped({wrap(key): shape for key, shape in MODEL.items()})
    assert keys == MODEL
    assert changes == [(segment, False)]


def test_wrappers_inside_each_other_are_told_together():
    stored = families_of({f"_orig_mod.module.{key}": shape for key, shape in MODEL.items()})
    wrappings = unwrap(stored, families_of(MODEL)).wrappings
    assert [wrapping.by for wrapping in wrappings] == [
        "DistributedDataParallel or DataParallel inside torch.compile"
    ]
    assert wrappings[0].gained == len(MODEL)


def test_any_prefix_goes_or_comes_that_makes_keys_fit():
    assert unwrapped({f"student.net.{key}": shape for key, shape in MODEL.items()}) == (
        [("student.net", False)],
        MODEL,
    )
    wanted = {f"base.{key}": shape for key, shape in MODEL.items()}
    assert unwrapped(MODEL, wanted) == ([("base", True)], wanted)


def test_a_child_of_the_models_own_stays():
    wanted = {f"module.{key}": shape for key, shape in MODEL.items()}
    assert unwrapped(wanted, wanted) == ([], wanted)
    assert unwrapped({f"module.{key}": shape for key, shape in wanted.items()}, wanted)[1] == wanted


def test_a_prefix_that_helps_few_keys_is_left():
    stored = {f"x.{key}": (9, 9) for key in MODEL} | {"x.norm.weight": (4,)}
    assert unwrapped(stored) == ([], stored)


def test_two_keys_are_never_made_one():
    stored = {f"module.{key}": shape for key, shape in MODEL.items()} | MODEL
    assert unwrapped(stored)[1] == stored


@pytest.mark.parametrize(
    "names", [("student", "teacher"), ("ema.model", "net"), ("module", "module_ema"), ("g", "d", "g_ema")]
)
def test_of_whole_sets_that_fit_equally_none_is_taken_whatever_their_order(names):
    for order in (names, names[::-1]):
        stored = {f"{name}.{key}": shape for name in order for key, shape in MODEL.items()}
        found = unwrap(families_of(stored), families_of(MODEL))
        assert not found.wrappings
        assert {rival.segments for rival in found.rivals} == set(names)
        assert all(rival.gained == len(MODEL) for rival in found.rivals)


def test_a_model_of_two_whole_sets_is_not_filled_by_the_first():
    wanted = {f"{name}.{key}": shape for name in ("student", "teacher") for key, shape in MODEL.items()}
    found = unwrap(families_of(MODEL), families_of(wanted))
    assert not found.wrappings
    assert [(rival.segments, rival.adds) for rival in found.rivals] == [("student", True), ("teacher", True)]


def test_a_set_that_fits_better_is_taken():
    stored = {f"student.{key}": shape for key, shape in MODEL.items()}
    stored |= {f"teacher.{key}": shape for key, shape in MODEL.items() if key != "norm.weight"}
    found = unwrap(families_of(stored), families_of(MODEL))
    assert [wrapping.segments for wrapping in found.wrappings] == ["student"]
    assert not found.rivals
