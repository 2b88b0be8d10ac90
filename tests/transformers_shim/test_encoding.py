"""The calling surface of tokenizers: batches, pairs, lengths, special and added tokens, files."""

from __future__ import annotations

import json

import pytest

import shardload
from tests.transformers_shim.vocabularies import LETTERS, ids, new


def test_special_tokens_of_the_vocabulary_are_whole(tmp_path):
    tokenizer = new(tmp_path)
    assert tokenizer("ab").data == {"input_ids": ids("^ab$"), "attention_mask": [1] * 4}
    assert tokenizer.all_special_tokens == ["^", "$", "?", "_"]
    assert tokenizer.all_special_ids == ids("^$?_")
    assert tokenizer.special_tokens_map["eos_token"] == "$"
    assert tokenizer.decode(ids("^a$"), skip_special_tokens=True) == "a"
    assert len(tokenizer) == len(LETTERS)


def test_pairs_and_masks(tmp_path):
    tokenizer = new(tmp_path)
    both = tokenizer("ab", "c", return_token_type_ids=True, return_length=True)
    assert both["input_ids"] == ids("^ab$c$")
    assert both["token_type_ids"] == [0, 0, 1]
    assert both["length"] == 6
    assert tokenizer([("a", "b"), ("c", "d")])["input_ids"] == [ids("^a$b$"), ids("^c$d$")]
    assert tokenizer(["a", "c"], ["b", "d"])["input_ids"] == [ids("^a$b$"), ids("^c$d$")]
    assert tokenizer.get_special_tokens_mask(ids("^a$"), already_has_special_tokens=True) == [1, 0, 1]


def test_words(tmp_path):
    tokenizer = new(tmp_path)
    assert tokenizer(["ab", "c"], is_split_into_words=True)["input_ids"] == ids("^abc$")
    assert tokenizer([["ab"], ["c"]], is_split_into_words=True)["input_ids"] == [ids("^ab$"), ids("^c$")]


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


def test_lowering_leaves_special_tokens_alone(tmp_path):
    tokenizer = new(tmp_path, {"additional_special_tokens": ["<A>"]})
    tokenizer.do_lower_case = True
    assert tokenizer.tokenize("AB<A>C") == ["a", "b", "<A>", "c"]


def test_spaces_before_punctuation_are_cleaned_where_asked(tmp_path):
    tokenizer = new(tmp_path)
    assert tokenizer.decode(ids("a , b !")) == "a, b!"
    assert tokenizer.decode(ids("a , b"), clean_up_tokenization_spaces=False) == "a , b"
    assert tokenizer.batch_decode([ids("^a"), ids("b$")], skip_special_tokens=True) == ["a", "b"]


def test_saved_and_loaded_it_encodes_alike(tmp_path):
    tokenizer = new(tmp_path / "a", {"model_max_length": 9, "chat_template": "{{ 1 }}"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    tokenizer.save_pretrained(tmp_path / "b")
    again = type(tokenizer).from_pretrained(tmp_path / "b")
    assert again.encode("a<x>b?") == tokenizer.encode("a<x>b?")
    assert (again.model_max_length, again.chat_template) == (9, "{{ 1 }}")
    assert json.loads((tmp_path / "b" / "special_tokens_map.json").read_text())["eos_token"] == "$"


def test_tensors_move_and_unpack(tmp_path):
    batch = new(tmp_path)(["ab", "cd"], return_tensors="pt")
    assert {**batch}.keys() == {"input_ids", "attention_mask"}
    assert batch.to("meta")["input_ids"].device.type == "meta"
    with pytest.raises(AttributeError):
        _ = batch.nothing
    with pytest.raises(ValueError, match="'pt' and 'np'"):
        new(tmp_path)("a", return_tensors="tf")


def test_what_is_no_text_is_refused(tmp_path):
    tokenizer = new(tmp_path)
    with pytest.raises((TypeError, ValueError), match="text"):
        tokenizer(None)
    with pytest.raises((TypeError, ValueError), match="text"):
        tokenizer(3)
    with pytest.raises((TypeError, ValueError), match="text"):
        tokenizer([3.5])


def test_chat_templates_are_rendered_with_the_special_tokens(tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}!{% endif %}"
    tokenizer = new(tmp_path, {"chat_template": template})
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "^abcd!"
    assert tokenizer.apply_chat_template(messages) == ids("^abcd")
    tensors = tokenizer.apply_chat_template(
        [messages, messages[:1]], padding=True, return_tensors="pt", return_dict=True
    )
    assert tensors["input_ids"].tolist() == [ids("^abcd"), ids("^ab__")]
    assert tokenizer.apply_chat_template(messages, tokenize=False, chat_template="{{ x }}", x=3) == "3"
    cut = "{% for m in messages %}{{ m.content }}${% endfor %}"
    assert (
        tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=cut, continue_final_message=True
        )
        == "ab$cd"
    )


def test_templates_of_their_own_files_and_by_name(tmp_path):
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    tokenizer = new(tmp_path / "a", {"chat_template": named})
    assert tokenizer.apply_chat_template([], tokenize=False) == "d"
    assert tokenizer.apply_chat_template([], tokenize=False, tools=[{}]) == "t"
    tokenizer = new(tmp_path / "b", chat_template_json={"chat_template": "from json"})
    assert tokenizer.apply_chat_template([], tokenize=False) == "from json"
    (tmp_path / "b" / "chat_template.jinja").write_text("from jinja")
    tokenizer = shardload.load_tokenizer(tmp_path / "b", trust_remote_code=True)
    assert tokenizer.apply_chat_template([], tokenize=False) == "from jinja"
    with pytest.raises(shardload.UsageError, match="no chat template"):
        new(tmp_path / "c").apply_chat_template([])
