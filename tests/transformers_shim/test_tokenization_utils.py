"""The base class of tokenizers written in Python: text split at added tokens, ids, and text again."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.tokenization_utils import (
    AddedToken,
    PreTrainedTokenizer,
    _is_control,
    _is_punctuation,
    _is_whitespace,
)
from tests.transformers_shim.vocabularies import LETTERS, ids, new


def test_added_tokens_split_text_the_longest_first(tmp_path):
    tokenizer = new(tmp_path)
    assert tokenizer.add_tokens(["<a>", "<a><b>", "ab"]) == 3
    first = len(LETTERS)
    assert tokenizer.tokenize("c<a><b><a>abc") == ["c", "<a><b>", "<a>", "ab", "c"]
    assert tokenizer.convert_tokens_to_ids(["<a>", "<a><b>", "ab"]) == [first, first + 1, first + 2]
    assert tokenizer.decode([*ids("c"), first, first, *ids("d")]) == "c <a> <a> d"
    assert tokenizer.decode([*ids("c"), first], spaces_between_special_tokens=False) == "c<a>"
    assert len(tokenizer) == first + 3
    assert tokenizer.tokenize("$a", split_special_tokens=True) == ["$", "a"]


def test_added_tokens_take_spaces_and_whole_words_as_they_say(tmp_path):
    tokens = {
        "90": {"content": "<l>", "lstrip": True},
        "91": {"content": "<r>", "rstrip": True},
        "92": {"content": "word", "single_word": True},
    }
    tokenizer = new(tmp_path, {"added_tokens_decoder": tokens})
    assert tokenizer.tokenize("a <l> b") == ["a", "<l>", " ", "b"]
    assert tokenizer.tokenize("a <r> b") == ["a", " ", "<r>", "b"]
    assert tokenizer.tokenize("a word b") == ["a", " ", "word", " ", "b"]
    assert tokenizer.tokenize("words") == list("words")
    assert tokenizer.tokenize("aword") == list("aword")


def test_lowering_leaves_special_tokens_alone(tmp_path):
    tokenizer = new(tmp_path, {"additional_special_tokens": ["<A>"]})
    tokenizer.do_lower_case = True
    assert tokenizer.tokenize("AB<A>C") == ["a", "b", "<A>", "c"]


def test_spaces_before_punctuation_are_cleaned_where_asked(tmp_path):
    tokenizer = new(tmp_path)
    assert tokenizer.decode(ids("a , b !")) == "a, b!"
    assert tokenizer.decode(ids("a , b"), clean_up_tokenization_spaces=False) == "a , b"
    assert tokenizer.batch_decode([ids("^a"), ids("b$")], skip_special_tokens=True) == ["a", "b"]


class Letters(PreTrainedTokenizer):
    """One id a letter; the vocabulary is there before or after the base constructor has run."""

    def __init__(self, late=False, **kwargs):
        if not late:
            self.letters = list("?abc")
        super().__init__(**kwargs)
        self.letters = list("?abc")

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {letter: index for index, letter in enumerate(self.letters)}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.index(token) if token in self.letters else 0

    def _convert_id_to_token(self, index):
        return self.letters[index]


@pytest.mark.parametrize("late", [False, True])
def test_a_vocabulary_may_come_before_or_after_the_base_constructor(late):
    tokenizer = Letters(late=late, eos_token="<end>", unk_token="?")
    assert tokenizer.convert_tokens_to_ids(["<end>", "?", "b"]) == [4, 0, 2]
    assert len(tokenizer) == 5
    # Only the older releases, whose code looks so, took the spaces beside a token that is given as a text.
    assert tokenizer.tokenize("a <end> b") == (["a", "<end>", "b"] if late else ["a", " ", "<end>", " ", "b"])


def test_ids_of_added_tokens_follow_the_vocabulary_and_leave_no_hole_twice():
    tokenizer = Letters(added_tokens_decoder={9: "<nine>"})
    assert tokenizer.add_tokens(["<x>", AddedToken("<y>"), "<x>", "a", ""]) == 2
    assert tokenizer.convert_tokens_to_ids(["<nine>", "<x>", "<y>", "a"]) == [9, 10, 11, 1]
    assert [str(token) for token in tokenizer.added_tokens_decoder.values()] == ["a", "<nine>", "<x>", "<y>"]
    with pytest.raises(TypeError, match="a token is a text or an AddedToken"):
        tokenizer.add_tokens([3])


def test_ids_become_tokens_one_by_one_or_as_a_list_and_special_ones_may_be_left_out():
    tokenizer = Letters(eos_token="<end>")
    assert tokenizer.convert_ids_to_tokens(4) == "<end>"
    assert tokenizer.convert_ids_to_tokens(torch.tensor([1, 4]), skip_special_tokens=True) == ["a"]
    assert tokenizer.convert_tokens_to_ids(None) is None
    assert tokenizer.decode([1, 4, 2], skip_special_tokens=True) == "a b"


@pytest.mark.parametrize(
    ("char", "space", "control", "mark"),
    [
        (" ", True, False, False), ("\n", True, False, False), ("\u2003", True, False, False),
        ("\x00", False, True, False), ("\u200b", False, True, False), ("$", False, False, True),
        ("。", False, False, True), ("a", False, False, False), ("`", False, False, True), ("^", False, False, True),
    ],
)  # fmt: skip
def test_characters_are_told_as_berts_tokenizer_does(char, space, control, mark):
    assert (_is_whitespace(char), _is_control(char), _is_punctuation(char)) == (space, control, mark)
