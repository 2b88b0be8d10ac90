"""KeyFamily: keys of one template, and what makes two families alike."""

from __future__ import annotations

import random

from shardload.diagnosis.pairing.key_family import KeyFamily, families_of, fill
from tests.diagnosis.pairing.families import family


def test_keys_become_families_and_families_keys():
    rng = random.Random(0)
    shapes = {f"layers.{n}.mlp.w": (4, 2) for n in range(12)} | {
        f"h.{a}.e.{b}.w": (a + 1,) for a in range(3) for b in (0, 5)
    }
    shapes["norm.weight"] = (2,)
    keys = list(shapes)
    rng.shuffle(keys)
    families = families_of({key: shapes[key] for key in keys})
    assert {f.template: f.arity for f in families} == {
        "layers.{}.mlp.w": 1,
        "h.{}.e.{}.w": 2,
        "norm.weight": 0,
    }
    again = {f.key(indices): shape for f in families for indices, shape in f.members.items()}
    assert again == shapes
    assert [name for f in families for name in f.names] == list(again)


def test_a_shape_is_one_only_where_all_are_alike():
    assert family("a.{}", (2, 3), 4).shape == (2, 3)
    assert KeyFamily("a.{}", {(0,): (2,), (1,): (3,)}).shape is None


def test_what_makes_two_families_alike():
    one, other = family("a.{}", (2, 3), 4), family("b.{}", (2, 3), 4)
    turned = family("c.{}", (3, 2), 4)
    later = KeyFamily("d.{}", {(n + 1,): (3, 2) for n in range(4)})
    assert one.signature == other.signature != turned.signature
    assert one.unordered == turned.unordered != later.unordered
    assert one.from_zero == later.from_zero
    # Experts are stacks of matrices: their last two dimensions may be turned. A convolution's are not.
    assert family("a", (5, 2, 3)).unordered == family("a", (5, 3, 2)).unordered
    assert family("a", (5, 2, 3, 1)).unordered != family("a", (5, 2, 1, 3)).unordered


def test_parts_by_index():
    whole = family("a.{}.{}", (2,), 2, 3)
    part = whole.where([(0, 1), (1, 2)])
    assert part.names == ["a.0.1", "a.1.2"]
    assert whole.without(part.members).index == whole.index - part.index
    assert whole.without([]) is whole


def test_a_number_can_become_part_of_the_name():
    first, second, third = family("a.{}.b.{}.w", (2,), 2, 3).with_literal(1)
    assert [f.template for f in (first, second, third)] == ["a.{}.b.0.w", "a.{}.b.1.w", "a.{}.b.2.w"]
    assert first.members == {(0,): (2,), (1,): (2,)}
    assert [f.template for f in family("{}.w", (2,), 2).with_literal(0)] == ["0.w", "1.w"]


def test_numbers_are_filled_in_in_order():
    assert fill("a.{}.b.{}", (3, 14)) == "a.3.b.14"
    assert fill("a.b", ()) == "a.b"
