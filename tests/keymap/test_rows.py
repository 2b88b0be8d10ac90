"""slice_rows and pad_rows against torch's slicing and padding."""

from __future__ import annotations

import pytest
import torch

from shardload import NoInverseError, UsageError
from shardload.keymap.rows import PadRows, SliceRows
from tests.keymap.random_maps import refs_of
from tests.keymap.stored import Stored, assert_same


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 5), (2, 4)])
def test_rows_are_torchs_slice(start, stop):
    stored = Stored(embed=(5, 3), bias=(5,), other=(1,))
    made = stored.after(SliceRows("embed", stop, start))
    assert_same(made, stored.tensors | {"embed": stored.tensors["embed"][start:stop]})


@pytest.mark.parametrize("value", [0, -1.5])
def test_padding_is_torchs_and_its_inverse_leaves_what_was_stored(value):
    stored = Stored(embed=(5, 3))
    rule = PadRows("embed", 8, value, 5)
    padded = torch.nn.functional.pad(stored.tensors["embed"], (0, 0, 0, 3), value=value)
    assert_same(stored.after(rule), {"embed": padded})
    assert rule.invert() == SliceRows("embed", 5)
    assert rule.invert().transform(rule.transform(dict(stored.refs)).table).table == stored.refs


def test_as_many_rows_as_are_stored_change_nothing():
    refs = Stored(embed=(5, 3)).refs
    assert PadRows("embed", 5).transform(dict(refs)).table == refs
    assert SliceRows("embed", 5).transform(dict(refs)).table == refs


def test_how_many_are_stored_is_filled_in_from_a_checkpoint():
    rule = PadRows("{...}.w", 8)
    with pytest.raises(NoInverseError, match="how many rows"):
        rule.invert()
    assert rule.bound(Stored(a__w=(5, 3), b__w=(5,), c=(2,)).refs).of == 5
    assert rule.bound(Stored(a__w=(5, 3), b__w=(4,)).refs).of is None
    with pytest.raises(NoInverseError, match="not kept"):
        SliceRows("w", 3).invert()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (SliceRows("w", 6), r"w \[5, 3\] needs 6 rows or more"),
        (PadRows("w", 4), "needs at most 4 rows"),
        (PadRows("w", 8, of=4), "needs 4 rows"),
        (SliceRows("scalar", 1), r"scalar \[\] needs 1 rows or more"),
    ],
)
def test_other_numbers_of_rows_are_refused(rule, message):
    with pytest.raises(UsageError, match=message):
        rule.transform(dict(Stored(w=(5, 3), scalar=()).refs))


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("F16", 65_504, True), ("F16", 65_505, False), ("BF16", 1e38, True), ("I8", -128, True), ("I8", -129, False),
        ("I64", 1.0, False), ("U8", -1, False), ("U8", 127, True), ("BOOL", 0, True), ("BOOL", 1, False),
        ("F8_E4M3", 0, True), ("F8_E4M3", 1, False),
    ],
)  # fmt: skip
def test_a_dtype_is_padded_only_with_what_it_holds(dtype, value, fits):
    refs = refs_of({"w": (2,)}, dtype=dtype)
    if fits:
        assert PadRows("w", 3, value).transform(refs).table["w"].shape == (3,)
    else:
        with pytest.raises(UsageError, match=f"stored as {dtype}, which has no"):
            PadRows("w", 3, value).transform(refs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SliceRows("w", 0),
        lambda: SliceRows("w", 3, 3),
        lambda: PadRows("w", 0),
        lambda: PadRows("w", 3, of=4),
        lambda: PadRows("w", 3, float("nan")),
        lambda: PadRows("w", 3, True),
        lambda: PadRows("w.{n}", 3),
    ],
)
def test_a_rule_that_can_mean_nothing_is_refused_when_it_is_made(make):
    with pytest.raises(UsageError):
        make()
