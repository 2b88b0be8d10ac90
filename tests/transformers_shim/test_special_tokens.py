"""Special tokens: by name, by id, as texts, and added to a vocabulary."""

from __future__ import annotations

import pytest

from shardload.transformers_shim._special_tokens import NAMES, AddedToken, SpecialTokensMixin, as_token
from tests.transformers_shim.vocabularies import LETTERS, ids, new


def test_special_tokens_of_the_vocabulary_are_whole(tmp_path):
    tokenizer = new(tmp_path)
    assert tokenizer("ab").data == {"input_ids": ids("^ab$"), "attention_mask": [1] * 4}
    assert tokenizer.all_special_tokens == ["^", "$", "?", "_"]
    assert tokenizer.all_special_ids == ids("^$?_")
    assert tokenizer.special_tokens_map["eos_token"] == "$"
    assert tokenizer.decode(ids("^a$"), skip_special_tokens=True) == "a"
    assert len(tokenizer) == len(LETTERS)


def test_older_files_of_special_and_added_tokens_are_read(tmp_path):
    tokenizer = new(
        tmp_path,
        special_tokens_map_json={"eos_token": {"content": "!", "lstrip": True}, "unk_token": "?"},
        added_tokens_json={"<t>": 77},
    )
    assert tokenizer.eos_token == "!"
    assert tokenizer.eos_token_id == ids("!")[0]
    assert tokenizer.encode("a<t> !", add_special_tokens=False) == [*ids("a"), 77, *ids("!")]
    assert tokenizer.added_tokens_decoder[77].content == "<t>"
    assert tokenizer.get_added_vocab()["<t>"] == 77


class Words(SpecialTokensMixin):
    """A vocabulary that grows."""

    def __init__(self, **kwargs):
        self.words = ["a", "<s>"]
        super().__init__(**kwargs)

    def convert_tokens_to_ids(self, tokens):
        if isinstance(tokens, str):
            return self.words.index(tokens) if tokens in self.words else None
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids, skip_special_tokens=False):
        return self.words[ids]

    def _add_tokens(self, new_tokens, special_tokens=False):
        new = [str(token) for token in new_tokens if str(token) not in self.words]
        self.words += new
        return len(new)


def test_every_named_token_is_a_text_and_an_id_and_can_be_set_by_either():
    for name in NAMES:
        words = Words()
        assert getattr(words, name) is getattr(words, f"{name}_id") is None
        setattr(words, name, "a")
        assert (getattr(words, name), getattr(words, f"{name}_id")) == ("a", 0)
        setattr(words, f"{name}_id", 1)
        assert getattr(words, name) == "<s>"
        setattr(words, f"{name}_id", None)
        assert getattr(words, name) is None


def test_a_token_keeps_its_options_and_is_shown_as_its_text():
    words = Words(eos_token={"content": "</s>", "lstrip": True, "unknown": 1}, bos_token="<s>")
    assert words.eos_token == "</s>"
    assert words.special_tokens_map == {"bos_token": "<s>", "eos_token": "</s>"}
    assert words.special_tokens_map_extended["eos_token"].lstrip is True
    assert as_token("x") == "x"
    assert AddedToken("x").normalized is True
    assert AddedToken("x", special=True).normalized is False


def test_special_tokens_are_listed_once_and_added_once():
    words = Words(bos_token="<s>", eos_token="<s>", additional_special_tokens=["<x>", "<s>"])
    assert words.all_special_tokens == ["<s>", "<x>"]
    assert words.sanitize_special_tokens() == 1
    assert words.all_special_ids == [1, 2]
    assert words.add_special_tokens({"additional_special_tokens": ["<y>"], "pad_token": "<p>"}) == 2
    assert words.additional_special_tokens == ["<y>"]
    more = {"additional_special_tokens": ["<z>", "<y>"]}
    assert words.add_special_tokens(more, replace_additional_special_tokens=False) == 1
    assert words.additional_special_tokens == ["<y>", "<z>"]
    with pytest.raises(ValueError, match="no_such is not a special token"):
        words.add_special_tokens({"no_such": "x"})


def test_a_subclass_may_fix_a_token():
    class Fixed(Words):
        @property
        def eos_token(self):
            return "a"

    words = Fixed(eos_token="<s>")
    assert (words.eos_token, words.eos_token_id) == ("a", 0)
    assert words.special_tokens_map_extended == {"eos_token": "<s>"}
