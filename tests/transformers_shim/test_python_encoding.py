"""From texts to rows of ids, in all the forms that a text has."""

from __future__ import annotations

import pytest

from shardload.transformers_shim._python_encoding import PythonEncodingMixin
from tests.transformers_shim.vocabularies import ids, new, old


def test_words(tmp_path):
    tokenizer = new(tmp_path)
    assert tokenizer(["ab", "c"], is_split_into_words=True)["input_ids"] == ids("^abc$")
    assert tokenizer([["ab"], ["c"]], is_split_into_words=True)["input_ids"] == [ids("^ab$"), ids("^c$")]


def test_what_is_no_text_is_refused(tmp_path):
    tokenizer = new(tmp_path)
    with pytest.raises((TypeError, ValueError), match="text"):
        tokenizer(None)
    with pytest.raises((TypeError, ValueError), match="text"):
        tokenizer(3)
    with pytest.raises((TypeError, ValueError), match="text"):
        tokenizer([3.5])


def test_ids_are_taken_as_they_are(tmp_path):
    tokenizer = old(tmp_path)
    assert tokenizer.build_chat_input("ab")["input_ids"].tolist() == [ids("^^ab")]
    pairs = tokenizer.batch_encode_plus([(ids("ab"), None)], return_tensors="pt", add_special_tokens=False)
    assert pairs["input_ids"].tolist() == [ids("ab")]


def test_offsets_are_known_only_to_the_tokenizers_library(tmp_path):
    tokenizer = new(tmp_path)
    for text in ("ab", ["ab", "c"]):
        with pytest.raises(NotImplementedError, match="tokenizer.json"):
            tokenizer(text, return_offsets_mapping=True)


def test_every_form_of_a_batch_is_its_rows_one_by_one(tmp_path):
    tokenizer = new(tmp_path)
    assert isinstance(tokenizer, PythonEncodingMixin)
    forms = ["ab", ("a", "bc"), ids("cd"), [ids("a"), ids("b")], ["a", "b"]]
    rows = tokenizer.batch_encode_plus(forms)["input_ids"]
    # Two texts, and two lists of ids, are a pair; a list of ids is a text.
    assert rows == [ids("^ab$"), ids("^a$bc$"), ids("^cd$"), ids("^a$b$"), ids("^a$b$")]


def test_a_batch_is_padded_when_all_its_rows_are_there(tmp_path):
    tokenizer = new(tmp_path)
    batch = tokenizer(
        ["a", "abc"], padding=True, pad_to_multiple_of=4, return_tensors="pt", return_length=True
    )
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert batch["length"].tolist() == [3, 5]
    without = tokenizer(["a"], padding=True, return_attention_mask=False)
    assert list(without) == ["input_ids"]


def test_a_word_list_is_split_only_where_it_is_said_to_be_words(tmp_path):
    tokenizer = new(tmp_path)
    assert tokenizer.encode(["ab", "c"], is_split_into_words=True, add_special_tokens=False) == ids("abc")
    assert tokenizer.encode(["ab", "c"], add_special_tokens=False) == [ids("?")[0], *ids("c")]
