"""Solution: the stages together, the map tried on the headers, and names of both sides."""

from __future__ import annotations

import pytest

from shardload import KeyMap
from shardload.diagnosis.pairing.key_family import families_of
from shardload.diagnosis.pairing.solution import Solution, solve
from shardload.keymap import Split
from tests.diagnosis.headers import keys, refs
from tests.diagnosis.key_sets import LAYOUTS, key_set


def solution(stored, wanted, config=None, classes=None):
    return Solution.of(refs(stored), wanted, config or {}, classes or {})


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_that_fits_has_nothing_to_solve(name):
    shapes, classes = key_set(name, 2)
    found = solution(shapes, shapes, classes=classes)
    assert found.filled == set(shapes)
    assert (found.key_map.rules, found.board.links, found.failed) == ((), [], "")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrapped_checkpoint_is_filled_and_its_names_lead_back(name):
    shapes, classes = key_set(name, 2)
    found = solution({f"module.{key}": shape for key, shape in shapes.items()}, shapes, classes=classes)
    assert found.filled == set(shapes)
    assert found.names == {f"module.{key}": key for key in shapes}
    assert sorted(found.stored_names(shapes)) == sorted(f"module.{key}" for key in shapes)


def test_links_are_listed_by_their_kind():
    stored = keys((6, 4), "h.{}.qkv.weight", 2) | keys((4,), "h.{}.ln_1.weight", 2)
    wanted = keys((4,), "h.{}.norm1.weight", 2)
    for name in "qkv":
        wanted |= keys((2, 4), f"h.{{}}.{name}_proj.weight", 2)
    found = solution(stored, wanted)
    assert found.filled == set(wanted)
    assert [link.kind for link in found.links("split")] == ["split"]
    assert {link.kind for link in found.links("split", "rename")} == {"split", "rename"}
    assert found.links("stack") == []


def test_what_nothing_explains_stays_open():
    board = solve(families_of({"zebra": (3, 5)}), families_of({"giraffe": (5, 7)}))
    assert ([f.template for f in board.stored], [f.template for f in board.wanted]) == (
        ["zebra"],
        ["giraffe"],
    )
    found = solution({"zebra": (3, 5)}, {"giraffe": (5, 7)})
    assert (found.filled, found.key_map.rules) == (set(), ())


def test_a_tie_is_looked_for_in_the_config():
    stored = {"model.embed_tokens.weight": (9, 4), "model.norm.weight": (4,)}
    wanted = {**stored, "lm_head.weight": (9, 4)}
    tied = solution(stored, wanted, {"tie_word_embeddings": True})
    assert tied.filled == set(wanted)
    assert [link.kind for link in tied.board.links] == ["alias"]


def test_rules_that_can_not_be_applied_leave_no_map_and_say_why():
    stored, wanted = {"a.w": (2, 4), "norm": (2,)}, {"b.w": (2, 4), "norm": (2,)}
    found = solution(stored, wanted)
    assert found.filled == set(wanted)
    wrong = Split("b.w", ("x", "y"), (5, 5))
    found.cure.structure.append((found.board.links[0], (wrong,)))
    found.key_map = KeyMap()
    found._try(refs(stored), wanted)
    assert "can't be cut into [5, 5]" in found.failed
    assert found.key_map.rules == ()
    assert found.filled == {"norm"}
