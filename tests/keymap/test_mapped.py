"""Renames and drops in a row against one rule after the other, and the views that an alias doubles."""

from __future__ import annotations

import random

import pytest

from shardload import KeyMap, UsageError
from shardload.keymap.drop import Drop
from shardload.keymap.mapped import is_name_rule, refuse_meeting, renamed, second_views
from shardload.keymap.rename import Rename
from tests.keymap.stored import Stored


def one_after_the_other(key, rules, claimed):
    """The meaning of a run: each rule is applied to what the one before it left."""
    for place, rule in enumerate(rules):
        new = rule.apply(key)
        claimed[place] += new != key
        if new is None:
            return None
        key = new
    return key


@pytest.mark.parametrize("seed", range(40))
def test_a_run_is_its_rules_one_after_the_other(seed):
    rng = random.Random(seed)
    names = ["a", "b", "c", "m.a", "m.b", "h.0", "h.1"]
    rules = []
    for _ in range(rng.randint(1, 8)):
        first, second = rng.sample(names, 2)
        rules.append(
            rng.choice(
                [
                    Rename(first, second),
                    Rename(first, second),
                    Drop(first),
                    Rename("m.{...}", "{...}"),
                    Rename("h.{}", "h.{+1}"),
                    Rename("a", "b", True),
                    Drop("h.*"),
                ]
            )
        )
    fast, slow = [0] * len(rules), [0] * len(rules)
    assert renamed(names, rules, fast) == {name: one_after_the_other(name, rules, slow) for name in names}
    assert fast == slow


def test_two_keys_that_end_in_one_name_are_refused():
    refuse_meeting({"a": "x", "b": None, "c": None})
    with pytest.raises(UsageError) as caught:
        refuse_meeting({"a": "x", "b": "y", "c": "x"})
    assert caught.value.where == "a and c both become x"


def test_an_alias_makes_a_second_view_and_parts_side_by_side_do_not():
    refs = Stored(a=(4, 2), b=(2,)).refs
    halves = KeyMap().split("a", ["x", "y"])
    assert second_views(halves.rules, halves.map_headers(refs).tensors) == set()
    aliased = KeyMap().alias("a", "z").split("a", ["x", "y"])
    tensors = aliased.map_headers(refs).tensors
    doubled = second_views(aliased.rules, tensors)
    assert doubled
    assert doubled < {"x", "y", "z"}
    assert second_views((), tensors) == set()  # without an alias nothing is looked for


def test_what_happened_to_each_stored_name_is_said():
    refs = Stored(a=(1,), b=(1,), c=(1,), d=(1,)).refs
    mapped = KeyMap().rename("a", "x").drop("b").rename("{}", "n.{}").map_headers(refs)
    assert (list(mapped.tensors), mapped.dropped, mapped.unchanged) == (["x", "c", "d"], ("b",), ("c", "d"))
    assert mapped.claimed == (1, 1, 0)


def test_name_rules_are_renames_and_drops():
    chain = KeyMap().rename("a", "b").drop("c").alias("a", "b").transpose("a")
    assert [is_name_rule(rule) for rule in chain.rules] == [True, True, False, False]
