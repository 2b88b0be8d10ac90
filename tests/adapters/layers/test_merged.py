"""MergedLinear: of fused projections some parts are adapted, group by group."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shardload.adapters.adapter import LoraEntry, Scaling
from shardload.adapters.layers.linear import LinearTerm
from shardload.adapters.layers.merged import Merged, MergedTerm
from shardload.adapters.layers.term import Factors
from shardload.tensor_ref import Span, TensorRef
from tests.adapters.models import Transposed

RANK, WIDTH, PART = 2, 5, 4

ENABLED = [on for on in itertools.product([True, False], repeat=3) if any(on)]


def made(enable):
    """Return the term, its factors, and the delta by its definition."""
    on = sum(enable)
    random = torch.Generator().manual_seed(0)
    a = torch.randn(RANK * on, WIDTH, generator=random, dtype=torch.float64)
    b = torch.randn(PART * on, RANK, generator=random, dtype=torch.float64)
    wanted, group = torch.zeros(PART * len(enable), WIDTH, dtype=torch.float64), 0
    for place, is_on in enumerate(enable):
        if is_on:
            rows = b[group * PART : (group + 1) * PART] @ a[group * RANK : (group + 1) * RANK]
            wanted[place * PART : (place + 1) * PART] = 3.0 * rows
            group += 1
    return MergedTerm(RANK, 3.0, enable=tuple(enable), groups=on), Factors(a, b), wanted


@pytest.mark.parametrize("enable", ENABLED, ids=str)
def test_the_delta_is_group_by_group_in_the_rows_that_are_on(enable):
    term, factors, wanted = made(enable)
    torch.testing.assert_close(term.delta(factors, (12, WIDTH)), wanted)
    for rows in (slice(0, 12), slice(0, 3), slice(3, 9), slice(11, 12)):
        torch.testing.assert_close(term.delta(factors, (12, WIDTH), rows), wanted[rows])


@pytest.mark.parametrize("enable", ENABLED, ids=str)
def test_a_transposed_base_takes_the_same_delta_turned(enable):
    term, factors, wanted = made(enable)
    turned = MergedTerm(RANK, 3.0, enable=term.enable, groups=term.groups, columns=True)
    torch.testing.assert_close(turned.delta(factors, (WIDTH, 12)), wanted.T)
    torch.testing.assert_close(turned.delta(factors, (WIDTH, 12), slice(1, 4)), wanted.T[1:4])


@pytest.mark.parametrize("enable", ENABLED, ids=str)
def test_the_output_is_that_of_the_delta_and_so_is_the_plain_pair(enable):
    term, factors, wanted = made(enable)
    x, out = torch.randn(2, 3, WIDTH).double(), torch.randn(2, 3, 12).double()
    layer = SimpleNamespace(training=False, lora_factors=lambda name: factors)
    torch.testing.assert_close(term.add(layer, "x", 0.5, x, out), out + 0.5 * x @ wanted.T)
    rank, tensors = term.stored(factors)
    plain = LinearTerm(rank, 3.0).delta(
        Factors(tensors["lora_A.weight"], tensors["lora_B.weight"]), (12, WIDTH)
    )
    torch.testing.assert_close(plain, wanted)


def entry(a, b, enable=None, **more):
    def ref(shape):
        return TensorRef("x", "F32", shape, "adapter", Span(0, 4))

    return LoraEntry("fused", ref(a), ref(b), Scaling(6.0), merged=True, enable=enable, **more)


def test_what_a_file_stores_is_read_with_its_parts():
    linear = nn.Linear(WIDTH, 12)
    both = entry((4, WIDTH), (8, 2, 1), (True, False, True))
    assert Merged().fits(linear, both)
    assert not Merged().fits(nn.Embedding(3, 3), both)
    assert Merged().unfit(linear, both) is None
    reading = Merged().read(linear, both)
    assert (reading.term.rank, reading.term.groups, reading.term.scale) == (2, 2, 3.0)
    assert reading.shapes == {"a": (4, WIDTH), "b": (8, 2, 1)}
    assert reading.note == "MergedLinear, 2 of 3 parts"
    whole = entry((6, WIDTH), (12, 2))
    assert Merged().read(linear, whole).term.enable == (True, True, True)
    assert Merged().read(Transposed(12, WIDTH), whole).term.columns


def test_parts_that_are_unknown_or_do_not_fit_are_refused():
    linear = nn.Linear(WIDTH, 12)
    assert "pass enable_lora=" in Merged().unfit(linear, entry((4, WIDTH), (8, 2)))
    assert "can't divide" in Merged().unfit(linear, entry((4, WIDTH), (8, 2), (True,) * 5))
    assert "can't divide" in Merged().unfit(linear, entry((4, WIDTH), (8, 2), (False, False)))
    dora = entry(
        (4, WIDTH), (8, 2), (True, True), magnitude=TensorRef("m", "F32", (12,), "adapter", Span(0, 4))
    )
    assert "DoRA" in Merged().unfit(linear, dora)
