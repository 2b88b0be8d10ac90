"""Padding and truncation: which lengths a call asks for, and how rows are padded and cut."""

from __future__ import annotations

import pytest

from shardload.transformers_shim._lengths import NO_LIMIT, LengthsMixin
from tests.transformers_shim.vocabularies import ids, new, old


def test_lengths(tmp_path):
    tokenizer = new(tmp_path, {"model_max_length": 6})
    assert tokenizer("abcdef", max_length=4)["input_ids"] == ids("^ab$")
    assert tokenizer("abcdef", truncation=True)["input_ids"] == ids("^abcd$")
    tokenizer.truncation_side = "left"
    assert tokenizer("abcdef", truncation=True)["input_ids"] == ids("^cdef$")
    padded = tokenizer("ab", padding="max_length")
    assert padded["input_ids"] == ids("^ab$__")
    assert padded["attention_mask"] == [1, 1, 1, 1, 0, 0]
    tokenizer.padding_side = "left"
    assert tokenizer(["a", "ab"], padding=True)["input_ids"] == [ids("_^a$"), ids("^ab$")]
    assert tokenizer("a", padding=True, pad_to_multiple_of=4)["input_ids"] == ids("_^a$")


def test_pairs_are_cut_longest_first(tmp_path):
    tokenizer = new(tmp_path)
    options = {"truncation": True, "max_length": 7}
    assert tokenizer("abcde", "ab", **options)["input_ids"] == ids("^ab$ab$")
    cut = tokenizer("ab", "abcde", truncation="only_second", max_length=7, return_overflowing_tokens=True)
    assert cut["input_ids"] == ids("^ab$ab$")
    assert cut["overflowing_tokens"] == ids("cde")


def test_a_tokenizer_without_a_padding_token_says_so(tmp_path):
    tokenizer = new(tmp_path)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        tokenizer(["a", "ab"], padding=True)


def test_pad_takes_rows_and_dictionaries(tmp_path):
    tokenizer = old(tmp_path)
    rows = [{"input_ids": ids("ab")}, {"input_ids": ids("a")}]
    assert tokenizer.pad(rows)["input_ids"] == [ids("ab"), ids("_a")]
    padded = tokenizer.pad({"input_ids": [ids("ab"), ids("a")]}, padding="max_length", max_length=3)
    assert padded["input_ids"] == [ids("_ab"), ids("__a")]
    with pytest.raises(ValueError, match="different lengths"):
        tokenizer(["ab", "a"], return_tensors="pt")


class Lengths(LengthsMixin):
    def __init__(self, **more):
        self.model_input_names = ["input_ids", "attention_mask"]
        self.model_max_length, self.padding_side, self.truncation_side = NO_LIMIT, "right", "right"
        self.pad_token, self.pad_token_id, self.pad_token_type_id = "_", 0, 7
        vars(self).update(more)

    def asked(self, *args, **kwargs):
        padding, truncation, length, rest = self._get_padding_truncation_strategies(*args, **kwargs)
        return padding.value, truncation.value, length, rest


NO, LONGEST, MAX = "do_not_pad", "longest", "max_length"
KEEP, CUT = "do_not_truncate", "longest_first"


@pytest.mark.parametrize(
    ("limit", "asked", "found"),
    [
        (9, {}, (NO, KEEP, None, {})),
        (9, {"max_length": 4}, (NO, CUT, 4, {})),  # a length alone means truncation
        (9, {"max_length": 4, "padding": True}, (LONGEST, KEEP, 4, {})),
        (9, {"truncation": True}, (NO, CUT, 9, {})),
        (NO_LIMIT, {"truncation": True}, (NO, KEEP, None, {})),
        (9, {"padding": "max_length"}, (MAX, KEEP, 9, {})),
        (NO_LIMIT, {"padding": "max_length"}, (NO, KEEP, None, {})),
        (9, {"padding": True, "truncation": "only_second"}, (LONGEST, "only_second", 9, {})),
        (9, {"pad_to_max_length": True, "max_length": 4}, (MAX, CUT, 4, {})),
        (9, {"truncation_strategy": "only_first", "other": 1}, (NO, "only_first", 9, {"other": 1})),
        (9, {"truncation": False, "max_length": 4}, (NO, KEEP, 4, {})),
    ],
)
def test_what_a_call_asks_for(limit, asked, found):
    assert Lengths(model_max_length=limit).asked(**asked) == found


def test_lengths_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="not a multiple of 4"):
        Lengths().asked(padding=True, truncation=True, max_length=6, pad_to_multiple_of=4)
    with pytest.raises(ValueError, match="no padding token"):
        Lengths(pad_token_id=-1).asked(padding=True)
    with pytest.raises(ValueError, match="neither 'left' nor 'right'"):
        Lengths(padding_side="top").pad({"input_ids": [1]}, "max_length", 3)
    with pytest.raises(ValueError, match="no 'input_ids' to pad"):
        Lengths().pad({"ids": [1]})


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_row_of_a_batch_is_filled_on_its_side(side):
    rows = {
        "input_ids": [[1, 2, 3], [4]],
        "token_type_ids": [[1, 1, 1], [2]],
        "special_tokens_mask": [[0] * 3, [0]],
    }
    padded = Lengths(padding_side=side).pad(rows, return_tensors="pt")

    def filled(row, filler):
        return [filler] * 2 + row if side == "left" else row + [filler] * 2

    assert padded["input_ids"].tolist() == [[1, 2, 3], filled([4], 0)]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], filled([1], 0)]
    assert padded["token_type_ids"].tolist() == [[1, 1, 1], filled([2], 7)]
    assert padded["special_tokens_mask"].tolist() == [[0, 0, 0], filled([0], 1)]
    assert Lengths().pad({"input_ids": [5, 6]}, pad_to_multiple_of=4)["input_ids"] == [5, 6, 0, 0]
    assert Lengths().pad({"input_ids": []}, return_attention_mask=True).data == {
        "input_ids": [],
        "attention_mask": [],
    }


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_cut_and_what_was_cut_off(side):
    lengths = Lengths(truncation_side=side)
    ids, pair = list(range(6)), list(range(10, 13))
    left = side == "left"
    cut = lengths.truncate_sequences(ids, None, 2, "longest_first", stride=1)
    assert cut == ((ids[2:], None, ids[:3]) if left else (ids[:4], None, ids[3:]))
    cut = lengths.truncate_sequences(ids, pair, 2, "only_second")
    assert cut == ((ids, pair[2:], pair[:2]) if left else (ids, pair[:1], pair[1:]))
    # The longer of the two loses one after the other; of equals the second.
    first, second, _ = lengths.truncate_sequences(ids, pair, 5, "longest_first")
    assert (len(first), len(second)) == (2, 2)
    first, second, _ = lengths.truncate_sequences(ids, pair, 4, "longest_first")
    assert (len(first), len(second)) == (3, 2)
    assert lengths.truncate_sequences(ids, pair, 9, "only_first") == (ids, pair, [])  # nothing would be left
    assert lengths.truncate_sequences(ids, pair, 2, "do_not_truncate") == (ids, pair, [])
