"""A rename, or a drop, of one key is found by that key."""

from __future__ import annotations

import pytest

from shardload.keymap.drop import Drop
from shardload.keymap.mapped import renamed
from shardload.keymap.rename import Rename


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        (Rename("a.b", "c"), "a.b"),
        (Rename("a.{}", "c.{}"), None),
        (Rename("a.{...}", "{...}"), None),
        (Rename("a", "", everywhere=True), None),
        (Drop("a.b"), "a.b"),
        (Drop("a.*"), None),
        (Drop("a.{}"), None),
        (Drop("a.[b]"), None),
    ],
)
def test_a_rule_says_the_only_key_that_it_may_take(rule, key):
    assert rule.only_key == key
    if key is not None:
        assert rule.apply(key) != key
        assert rule.apply(f"{key}.more") == f"{key}.more"


def test_rules_of_single_keys_are_applied_in_their_order():
    rules = [
        Rename("a", "b"),
        Drop("b"),
        Rename("c", "d"),
        Rename("{...}.w", "{...}.v"),
        Drop("x.v"),
        Drop("d"),
    ]
    claimed = [0] * len(rules)
    assert renamed(["a", "b", "c", "x.w", "y.w", "e"], rules, claimed) == {
        "a": None,
        "b": None,
        "c": None,
        "x.w": None,
        "y.w": "y.v",
        "e": "e",
    }
    assert claimed == [1, 2, 1, 2, 1, 1]
