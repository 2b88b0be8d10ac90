"""stack and unstack against torch's, and each against the other."""

from __future__ import annotations

import pytest
import torch

from shardload import KeyMap, UsageError
from shardload.keymap.stack import MOST, Stack, Unstack
from tests.keymap.stored import Stored, assert_same, shapes


def test_experts_become_one_tensor_in_the_given_order():
    stored = {f"e__{n}__{w}": (6, 4) for n in range(3) for w in ("w1", "w3")}
    key_map = KeyMap().cat(["e.{}.w1", "e.{}.w3"], "e.{}.gu").stack("e.{n}.gu", "e.gate_up")
    assert shapes(key_map, **stored) == {"e.gate_up": (3, 12, 4)}


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_a_stack_is_torchs_by_number_and_its_inverse_takes_it_apart(dim):
    # Ten and more: by number, not by text; the file has them in another order.
    stored = Stored(**{f"e__{n}__w": (2, 3) for n in (3, 0, 11, 1, 2, 10, 4, 5, 6, 7, 8, 9)}, other=(1,))
    rule = Stack("e.{n}.w", "e.w", dim)
    whole = torch.stack([stored.tensors[f"e.{n}.w"] for n in range(12)], dim)
    assert_same(stored.after(rule), {"e.w": whole, "other": stored.tensors["other"]})
    back = Stack("e.{n}.w", "e.w", dim).invert().transform(rule.transform(dict(stored.refs)).table)
    assert back.table == stored.refs


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_an_unstack_is_torchs_unbind(dim):
    stored = Stored(w=(2, 3))
    made = stored.after(Unstack("w", "w.{n}", dim))
    assert_same(made, {f"w.{n}": part for n, part in enumerate(stored.tensors["w"].unbind(dim))})


def test_each_set_of_the_other_numbers_is_a_stack_of_its_own():
    stored = Stored(h__0__e__0=(2,), h__1__e__0=(2,), h__1__e__1=(2,), h__0__e__1=(2,))
    made = stored.after(Stack("h.{}.e.{n}", "h.{}.e"))
    for layer in "01":
        parts = [stored.tensors[f"h.{layer}.e.{n}"] for n in range(2)]
        assert torch.equal(made[f"h.{layer}.e"], torch.stack(parts))


@pytest.mark.parametrize(
    ("rule", "stored", "message"),
    [
        (Stack("e.{n}", "e"), {"e__0": (2,), "e__2": (2,)}, r"has \{0,2\}, and needs \{0-1\}"),
        (Stack("e.{n}", "e", count=3), {"e__0": (2,), "e__1": (2,)}, r"needs \{0-2\}"),
        (Stack("e.{n}", "e"), {"e__0": (2,), "e__1": (3,)}, r"shapes \[2\], \[3\]"),
        (Stack("e.{n}", "e", 2), {"e__0": (2,)}, "no dimension 2 in 2"),
        (Unstack("e", "e.{n}", 1), {"e": (2,)}, "entries along dimension 1"),
        (Unstack("e", "e.{n}"), {"e": (MOST + 1,)}, "no 1 to 65,536 entries"),
    ],
)
def test_what_does_not_fit_is_refused_with_shapes(rule, stored, message):
    with pytest.raises(UsageError, match=message):
        rule.transform(dict(Stored(**stored).refs))


def test_a_number_with_leading_zeros_is_no_number():
    refs = Stored(e__0=(2,), e__01=(2,)).refs
    assert set(Stack("e.{n}", "e").transform(dict(refs)).table) == {"e", "e.01"}


def test_counts_are_filled_in_from_a_checkpoint():
    refs = Stored(e__0=(2,), e__1=(2,), w=(3, 5)).refs
    assert Stack("e.{n}", "e").bound(refs).count == 2
    assert Unstack("w", "w.{n}", 1).bound(refs).count == 5
    assert Stack("e.{n}", "e", 1, 2).invert() == Unstack("e", "e.{n}", 1, 2)


@pytest.mark.parametrize("kind", [Stack, Unstack])
@pytest.mark.parametrize(
    ("counted", "other", "more"),
    [("e", "e", {}), ("e.{n}", "f.{n}", {}), ("e.{}.{n}", "e", {}), ("e.{n}", "e", {"count": 0})],
)
def test_a_rule_that_counts_nothing_is_refused_when_it_is_made(kind, counted, other, more):
    with pytest.raises(UsageError):
        kind(counted, other, **more) if kind is Stack else kind(other, counted, **more)
