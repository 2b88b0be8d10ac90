"""What rules share: the table after a rule, and the arguments that a rule takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from shardload import UsageError
from shardload.keymap.derived import Filled, Joined
from shardload.keymap.rule import (
    LARGEST,
    MOST_TEMPLATES,
    RuleBase,
    dimension,
    only,
    rebuilt,
    shown,
    sizes_of,
    template_list,
    whole_number,
)
from tests.keymap.stored import Stored


def test_new_tensors_stand_where_the_old_one_stood():
    a, b, c = Stored(a=(1,), b=(2,), c=(3,)).refs.values()
    table = {"a": a, "b": b, "c": c}
    assert list(rebuilt(table, ["b"], {"b": [("x", a), ("y", b)]})) == ["a", "x", "y", "c"]
    assert list(rebuilt(table, [], {"b": [("x", a)]})) == ["a", "b", "x", "c"]
    assert list(rebuilt(table, ["a", "c"], {})) == ["b"]


def test_padding_alone_is_a_tensor():
    made = rebuilt(Stored(a=(1,)).refs, ["a"], {"a": [("x", Filled("F32", (2,), 1))]})
    assert made["x"] == Joined("F32", (2,), 0, (Filled("F32", (2,), 1),))


def test_a_name_that_two_tensors_would_have_is_refused_with_both():
    refs = Stored(a=(1,), b=(2,)).refs
    with pytest.raises(UsageError, match="1 keys a name that is taken") as caught:
        rebuilt(refs, ["a"], {"a": [("b", refs["a"])]})
    assert caught.value.where == "a and b both become b"


@pytest.mark.parametrize("value", [0, 1, LARGEST])
def test_whole_numbers(value):
    assert whole_number("n", value) == value


@pytest.mark.parametrize("value", [-1, LARGEST + 1, True, 1.0, "1", None])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(UsageError, match="n is a whole number from 0 to"):
        whole_number("n", value)


def test_dimensions_count_from_both_ends():
    assert [dimension(value) for value in (-64, 0, 63)] == [-64, 0, 63]
    for value in (-65, 64):
        with pytest.raises(UsageError, match="a dimension"):
            dimension(value)


def test_sizes_are_one_for_each_template():
    assert sizes_of(None, 2) is None
    assert sizes_of([1, 2], 2) == (1, 2)
    for value in ([1], [1, 2, 3], "12", {1: 2}, [1, -1]):
        with pytest.raises(UsageError):
            sizes_of(value, 2)


def test_templates_are_two_or_more_and_different():
    assert template_list("split", ["a", "b"]) == ("a", "b")
    many = [f"a{n}" for n in range(MOST_TEMPLATES + 1)]
    assert len(template_list("split", many[1:])) == MOST_TEMPLATES
    for value in ("ab", ["a"], ["a", "a"], ["a", 1], many):
        with pytest.raises(UsageError):
            template_list("split", value)


def test_only_is_the_one_value():
    assert only([3, 3]) == 3
    assert only([3, 4]) is only([]) is None


def test_shapes_are_shown_as_torch_shows_them():
    assert [shown(shape) for shape in ((), (3,), (2, 0))] == ["[]", "[3]", "[2, 0]"]


@dataclass(frozen=True)
class Odd(RuleBase):
    op: ClassVar[str] = "odd"
    source: str
    targets: tuple[str, ...] = ("a", "b")
    dim: int = 0


def test_json_leaves_out_defaults():
    assert Odd("x").to_dict() == {"op": "odd", "source": "x"}
    assert Odd("x", ("c",), 1).to_dict() == {"op": "odd", "source": "x", "targets": ["c"], "dim": 1}


def test_all_faults_are_one_error_and_five_of_them_are_shown():
    with pytest.raises(UsageError, match="key map's odd does not fit 7 tensors") as caught:
        Odd("x")._refuse([f"w{n}" for n in range(7)])
    assert caught.value.where == "w0; w1; w2; w3; w4; and 2 more"
    Odd("x")._refuse([])
