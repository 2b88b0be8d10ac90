"""The calling surface of tokenizers: batches, pairs, lengths, special and added tokens, files."""

from __future__ import annotations

from shardload.transformers_shim._encoding import EncodingMixin
from tests.transformers_shim.vocabularies import ids, new


def test_pairs_and_masks(tmp_path):
    tokenizer = new(tmp_path)
    both = tokenizer("ab", "c", return_token_type_ids=True, return_length=True)
    assert both["input_ids"] == ids("^ab$c$")
    assert both["token_type_ids"] == [0, 0, 1]
    assert both["length"] == 6
    assert tokenizer([("a", "b"), ("c", "d")])["input_ids"] == [ids("^a$b$"), ids("^c$d$")]
    assert tokenizer(["a", "c"], ["b", "d"])["input_ids"] == [ids("^a$b$"), ids("^c$d$")]
    assert tokenizer.get_special_tokens_mask(ids("^a$"), already_has_special_tokens=True) == [1, 0, 1]


class Plain(EncodingMixin):
    model_input_names = ("input_ids", "token_type_ids", "attention_mask")
    model_max_length, padding_side, truncation_side = 10**30, "right", "right"
    pad_token, pad_token_id, pad_token_type_id = "_", 0, 0
    all_special_ids = (7,)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [7, *token_ids_0, 7, *(token_ids_1 or [])]

    def create_token_type_ids_from_sequences(self, token_ids_0, token_ids_1=None):
        return [0] * (len(token_ids_0) + 2) + [1] * len(token_ids_1 or ())


def test_ids_become_a_row_with_everything_that_is_asked_for():
    row = Plain().prepare_for_model([1, 2], [3], return_length=True, return_attention_mask=True)
    assert row.data == {
        "input_ids": [7, 1, 2, 7, 3], "token_type_ids": [0, 0, 0, 0, 1], "attention_mask": [1] * 5, "length": 5
    }  # fmt: skip
    bare = Plain().prepare_for_model([1, 2], [3], add_special_tokens=False, return_special_tokens_mask=True)
    assert (bare["input_ids"], bare["token_type_ids"]) == ([1, 2, 3], [0, 0, 1])
    assert bare["special_tokens_mask"] == [0, 0, 0]
    cut = Plain().prepare_for_model(
        [1, 2, 3, 4], truncation=True, max_length=4, return_overflowing_tokens=True, stride=1
    )
    assert (cut["input_ids"], cut["overflowing_tokens"], cut["num_truncated_tokens"]) == (
        [7, 1, 2, 7],
        [2, 3, 4],
        2,
    )


def test_special_tokens_are_counted_and_marked():
    assert (Plain().num_special_tokens_to_add(), Plain().num_special_tokens_to_add(pair=True)) == (2, 2)
    assert Plain().get_special_tokens_mask([7, 1, 7], already_has_special_tokens=True) == [1, 0, 1]
    assert Plain().get_special_tokens_mask([1], [2]) == [0, 0]


def test_english_punctuation_loses_the_spaces_before_it():
    text = "it 's n't , really ? do n't !"
    assert Plain.clean_up_tokenization(text) == "it'sn't, really? don't!"
