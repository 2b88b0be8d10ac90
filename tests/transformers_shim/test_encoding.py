"""The calling surface of tokenizers: batches, pairs, lengths, special and added tokens, files."""

from __future__ import annotations

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
