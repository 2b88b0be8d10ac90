"""split and cat against torch's, and each against the other."""

from __future__ import annotations

import pytest
import torch

from shardload import KeyMap, NoInverseError, UsageError
from shardload.keymap.split import Cat, Split
from tests.keymap.random_maps import refs_of
from tests.keymap.stored import Stored, assert_same, shapes


def test_split_takes_weight_and_bias_alike():
    key_map = KeyMap().split("h.{}.qkv.{...}", ["h.{}.q.{...}", "h.{}.kv.{...}"], [8, 4])
    assert shapes(key_map, h__0__qkv__weight=(12, 5), h__0__qkv__bias=(12,)) == {
        "h.0.q.weight": (8, 5),
        "h.0.kv.weight": (4, 5),
        "h.0.q.bias": (8,),
        "h.0.kv.bias": (4,),
    }


def test_parts_of_other_dtypes_are_refused():
    refs = refs_of({"a": (2,)}) | refs_of({"b": (2,)}, dtype="I32")
    with pytest.raises(UsageError, match="F32, I32"):
        KeyMap().cat(["a", "b"], "c").map_headers(refs)


@pytest.mark.parametrize(("dim", "sizes"), [(0, (1, 2, 3)), (1, (2, 2, 2)), (-1, None), (0, (6, 0, 0))])
def test_a_split_is_torchs_and_its_inverse_joins_again(dim, sizes):
    stored = Stored(first=(2,), qkv=(6, 6), last=(3,))
    rule = Split("qkv", ("q", "k", "v"), sizes, dim)
    parts = stored.tensors["qkv"].split(list(sizes or (2, 2, 2)), dim)
    wanted = {
        "first": stored.tensors["first"],
        **dict(zip(("q", "k", "v"), parts, strict=True)),
        "last": stored.tensors["last"],
    }
    assert_same(stored.after(rule), wanted)
    step = rule.transform(dict(stored.refs))
    assert list(step.claimed) == ["qkv"]
    if not sizes or all(sizes):
        assert rule.invert().transform(step.table).table == stored.refs


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_cat_is_torchs_in_the_order_of_its_sources(dim):
    stored = Stored(up=(2, 2), x=(1,), gate=(2, 2))
    made = stored.after(Cat(("gate", "up"), "gate_up", dim))
    joined = torch.cat([stored.tensors["gate"], stored.tensors["up"]], dim)
    # It stands where its first part stood.
    assert_same(made, {"x": stored.tensors["x"], "gate_up": joined})


def test_a_cat_is_made_for_each_set_of_numbers():
    stored = Stored(h__0__a=(1,), h__1__b=(2,), h__0__b=(2,), h__1__a=(1,))
    made = stored.after(Cat(("h.{}.a", "h.{}.b"), "h.{}.ab"))
    for layer in "01":
        parts = [stored.tensors[f"h.{layer}.a"], stored.tensors[f"h.{layer}.b"]]
        assert torch.equal(made[f"h.{layer}.ab"], torch.cat(parts))


def test_sizes_are_filled_in_from_a_checkpoint_where_all_keys_agree():
    refs = Stored(h__0__a=(1, 3), h__0__b=(2, 3), h__1__a=(1, 3), h__1__b=(2, 3)).refs
    cat = Cat(("h.{}.a", "h.{}.b"), "h.{}.ab")
    with pytest.raises(NoInverseError, match="without sizes"):
        cat.invert()
    assert cat.bound(refs).sizes == (1, 2)
    assert cat.bound(refs).invert() == Split("h.{}.ab", ("h.{}.a", "h.{}.b"), (1, 2))
    others = Stored(h__0__a=(1, 3), h__0__b=(2, 3), h__1__a=(4, 3), h__1__b=(2, 3)).refs
    assert cat.bound(others).sizes is None
    assert Split("x", ("a", "b")).bound(Stored(x=(4,)).refs).sizes == (2, 2)


@pytest.mark.parametrize("kind", [Split, Cat])
@pytest.mark.parametrize(
    ("one", "many", "more"),
    [
        ("a.{}", ("b", "c"), {}),
        ("a", ("b",), {}),
        ("a", ("b", "b"), {}),
        ("a", ("b", "c"), {"sizes": (1,)}),
        ("a", ("b", "c"), {"sizes": (1, -1)}),
        ("a", ("b", "c"), {"dim": 64}),
        ("a", ("b", "c"), {"dim": True}),
        ("a.{n}", ("b.{n}", "c.{n}"), {}),
    ],
)
def test_a_rule_that_can_mean_nothing_is_refused_when_it_is_made(kind, one, many, more):
    with pytest.raises(UsageError):
        kind(one, many, **more) if kind is Split else kind(many, one, **more)
