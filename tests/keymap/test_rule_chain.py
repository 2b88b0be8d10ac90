"""RuleChain: one method for each kind of rule, and a chain is never changed."""

from __future__ import annotations

import inspect

import pytest

from shardload import KeyMap, UsageError
from shardload.keymap import RULES
from shardload.keymap.alias import Alias
from shardload.keymap.drop import Drop
from shardload.keymap.rename import Rename
from shardload.keymap.rows import PadRows, SliceRows
from shardload.keymap.rule_chain import RuleChain
from shardload.keymap.split import Cat, Split
from shardload.keymap.stack import Stack, Unstack
from shardload.keymap.transpose import Transpose

MADE = {
    "rename": (lambda chain: chain.rename("a", "b", everywhere=True), Rename("a", "b", True)),
    "drop": (lambda chain: chain.drop("*.mask"), Drop("*.mask")),
    "alias": (lambda chain: chain.alias("a", "b"), Alias("a", "b")),
    "split": (lambda chain: chain.split("a", ["b", "c"], [1, 2], 1), Split("a", ("b", "c"), (1, 2), 1)),
    "cat": (lambda chain: chain.cat(["b", "c"], "a", 1, [1, 2]), Cat(("b", "c"), "a", 1, (1, 2))),
    "stack": (lambda chain: chain.stack("a.{n}", "a", 1, 2), Stack("a.{n}", "a", 1, 2)),
    "unstack": (lambda chain: chain.unstack("a", "a.{n}", 1, 2), Unstack("a", "a.{n}", 1, 2)),
    "transpose": (lambda chain: chain.transpose("a", (0, 1)), Transpose("a", (0, 1))),
    "slice_rows": (lambda chain: chain.slice_rows("a", 5, 2), SliceRows("a", 5, 2)),
    "pad_rows": (lambda chain: chain.pad_rows("a", 5, 1.5, 2), PadRows("a", 5, 1.5, 2)),
}


@pytest.mark.parametrize("name", MADE)
def test_a_method_adds_its_rule_and_changes_nothing(name):
    make, rule = MADE[name]
    start = RuleChain().drop("x")
    longer = make(start)
    assert longer.rules == (Drop("x"), rule)
    assert start.rules == (Drop("x"),)
    assert rule.op == name


def test_there_is_a_method_for_every_rule():
    methods = {
        name for name, _ in inspect.getmembers(RuleChain, inspect.isfunction) if not name.startswith("_")
    }
    assert methods == set(MADE) == set(RULES)


def test_chains_are_added_in_order_and_keep_their_kind():
    chain = KeyMap().rename("a", "b") + RuleChain().rename("b", "c")
    assert type(chain) is KeyMap
    assert chain.apply("a") == "c"
    assert (KeyMap().rename("b", "c") + RuleChain().rename("a", "b")).apply("a") == "b"


def test_a_rule_that_can_mean_nothing_is_refused_at_once():
    with pytest.raises(UsageError):
        RuleChain().split("a", ["b"])
