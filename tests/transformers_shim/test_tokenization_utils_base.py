"""The base class of all tokenizers: its options, and the moment at which the vocabulary is needed."""

from __future__ import annotations

import pytest

from shardload.transformers_shim.tokenization_utils_base import (
    VERY_LARGE_INTEGER,
    BatchEncoding,
    PreTrainedTokenizerBase,
)


class Bare(PreTrainedTokenizerBase):
    vocab_size = 5

    def convert_tokens_to_ids(self, tokens):
        return 0 if isinstance(tokens, str) else [0 for _ in tokens]

    def _add_tokens(self, new_tokens, special_tokens=False):
        return 0

    def num_special_tokens_to_add(self, pair=False):
        return 3 if pair else 2


def test_the_vocabulary_is_asked_when_the_outermost_constructor_has_returned():
    seen = []

    class First(Bare):
        def __init__(self):
            super().__init__()
            seen.append("first")

        def _constructed(self):
            seen.append("constructed")

    class Second(First):
        def __init__(self):
            super().__init__()
            seen.append("second")

    Second()
    assert seen == ["first", "second", "constructed"]


def test_options_are_kept_as_they_were_given():
    template = [{"name": "default", "template": "x"}]
    bare = Bare(model_max_length=8, padding_side="left", chat_template=template, other=1, eos_token="a")
    assert (bare.model_max_length, bare.padding_side, bare.truncation_side) == (8, "left", "right")
    assert (bare.max_len_single_sentence, bare.max_len_sentences_pair) == (6, 5)
    template[0]["template"] = "changed"
    assert bare.init_kwargs["chat_template"] == [{"name": "default", "template": "x"}]
    assert bare.init_kwargs["other"] == 1
    assert Bare(max_len=4).model_max_length == 4
    assert Bare().model_max_length == VERY_LARGE_INTEGER
    assert bare.is_fast is False


def test_a_side_is_left_or_right():
    for side in ("padding_side", "truncation_side"):
        with pytest.raises(ValueError, match=f"{side} is 'top'"):
            Bare(**{side: "top"})


def test_a_side_that_the_subclass_fixes_stays():
    class Fixed(Bare):
        @property
        def padding_side(self):
            return "left"

    assert Fixed(padding_side="right").padding_side == "left"


def test_targets_are_encoded_between_two_switches():
    seen = []

    class Switching(Bare):
        def _switch_to_target_mode(self):
            seen.append("target")

        def _switch_to_input_mode(self):
            seen.append("input")

        def _encode_plus(self, text, text_pair=None, **kwargs):
            seen.append(text)
            return BatchEncoding({"input_ids": [len(text)]})

    tokenizer = Switching()
    with tokenizer.as_target_tokenizer():
        tokenizer("a")
    assert seen == ["target", "a", "input"]
    seen.clear()
    both = tokenizer("a", text_target="bcd")
    assert both.data == {"input_ids": [1], "labels": [3]}
    assert seen == ["a", "target", "bcd", "input"]


def test_it_shows_what_decides_about_ids():
    text = repr(Bare(name_or_path="org/name", eos_token="</s>"))
    for part in ("Bare(", "'org/name'", "vocab_size=5", "padding_side='right'", "{'eos_token': '</s>'}"):
        assert part in text
