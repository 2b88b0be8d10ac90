"""Key maps: rules that make a model's tensors of a checkpoint's, by names, shapes and places; torch is not imported."""

from __future__ import annotations

from shardload.keymap.alias import Alias
from shardload.keymap.derived import Derived, Joined, as_view, leaves
from shardload.keymap.drop import Drop, matches
from shardload.keymap.fingerprint import Fingerprint
from shardload.keymap.key_map import KeyMap, Names
from shardload.keymap.mapped import MappedHeaders, second_views
from shardload.keymap.rename import Rename
from shardload.keymap.residence import Residence, residence
from shardload.keymap.rows import PadRows, SliceRows
from shardload.keymap.rule import Rule
from shardload.keymap.rules import RULES, rule_of
from shardload.keymap.split import Cat, Split
from shardload.keymap.stack import Stack, Unstack
from shardload.keymap.transpose import Transpose

__all__ = [
    "RULES",
    "Alias",
    "Cat",
    "Derived",
    "Drop",
    "Fingerprint",
    "Joined",
    "KeyMap",
    "MappedHeaders",
    "Names",
    "PadRows",
    "Rename",
    "Residence",
    "Rule",
    "SliceRows",
    "Split",
    "Stack",
    "Transpose",
    "Unstack",
    "as_view",
    "leaves",
    "matches",
    "residence",
    "rule_of",
    "second_views",
]
