"""A table that rules edit one after the other is what they make of the whole table."""

from __future__ import annotations

import pytest

from shardload import KeyMap, UsageError
from shardload.keymap.edited_table import EditedTable
from shardload.keymap.rules import RULES
from tests.keymap.stored import Stored

TABLE = Stored(**{"a.0.w": (6, 2), "b": (4, 2), "a.1.w": (6, 2), "a.x.w": (6, 2), "c": (2, 2), "tail": (3,)})
MAP = (
    KeyMap()
    .split("a.{}.w", ["p.{}", "q.{}"])
    .transpose("p.{}")
    .alias("p.0", "again")
    .cat(["b", "c"], "whole")
    .unstack("tail", "t.{n}")
    .stack("q.{n}", "qs")
    .transpose("{...}.w")
)


def test_rules_see_what_they_may_match_and_make_the_same_table_in_the_same_order():
    table = dict(TABLE.refs)
    for rule in MAP.rules:
        table = rule.transform(table).table
    mapped = MAP.map_headers(TABLE.refs)
    assert list(mapped.tensors.items()) == list(table.items())
    assert list(table) == ["p.0", "again", "qs", "whole", "p.1", "a.x.w", "t.0", "t.1", "t.2"]


@pytest.mark.parametrize(
    ("templates", "names"),
    [
        (["a.{}.w"], ["a.0.w", "a.1.w"]),
        (["a.7.w"], ["a.0.w", "a.1.w"]),  # a rule of its own looks again
        (["a.{n}.w", "c"], ["a.0.w", "a.1.w", "c"]),
        (["none"], []),
        (["{...}.w"], list(TABLE.refs)),
        (None, list(TABLE.refs)),
    ],
)
def test_a_part_has_the_names_that_templates_may_match(templates, names):
    assert list(EditedTable(TABLE.refs).part(templates)) == names


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(UsageError, match="a name that is taken") as caught:
        KeyMap().transpose("a.x.w").alias("c", "b").map_headers(TABLE.refs)
    assert "c and b both become b" in caught.value.where or "b and c both become b" in caught.value.where


def test_every_kind_of_rule_that_makes_tensors_says_where_it_looks():
    named = {op: kind for op, kind in RULES.items() if op not in {"rename", "drop"}}
    assert named
    assert all("templates" in vars(kind) for kind in named.values())
