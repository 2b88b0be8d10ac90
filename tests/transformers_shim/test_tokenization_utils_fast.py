"""tokenizer.json, where the tokenizers library is installed."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

import shardload
from shardload.transformers_shim.tokenization_utils_fast import PreTrainedTokenizerFast

tokenizers = pytest.importorskip("tokenizers")

WORDS = {"[UNK]": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "a": 4, "b": 5, "c": 6}


@pytest.fixture
def repo(tmp_path):
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    built.add_special_tokens(["<s>", "</s>", "<pad>"])
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    built.enable_truncation(2)
    built.enable_padding(length=9)
    built.save(str(tmp_path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "[UNK]",
        "additional_special_tokens": ["<new>"],
        "chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_it_has_the_same_calling_surface(repo):
    tokenizer = shardload.load_tokenizer(repo)
    assert tokenizer("a b c x").data == {"input_ids": [1, 4, 5, 6, 0], "attention_mask": [1] * 5}
    assert tokenizer("a", "b", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1]
    batch = tokenizer(["a", "b c"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[1, 4, 3], [1, 5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert tokenizer.encode("a b", add_special_tokens=False) == [4, 5]
    assert tokenizer("a b c", truncation=True, max_length=3)["input_ids"] == [1, 4, 5]
    assert tokenizer("a b c")["input_ids"] == [1, 4, 5, 6]
    assert tokenizer([["a", "b"]], is_split_into_words=True)["input_ids"] == [[1, 4, 5]]
    assert tokenizer("a b", return_offsets_mapping=True)["offset_mapping"][1:] == [(0, 1), (2, 3)]


def test_special_tokens_and_decoding(repo):
    tokenizer = shardload.load_tokenizer(repo)
    assert tokenizer.convert_tokens_to_ids("<new>") == 7
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (2, 3, 8)
    assert tokenizer.convert_tokens_to_ids(["a", "nothing"]) == [4, 0]
    assert tokenizer.convert_ids_to_tokens([4, 2], skip_special_tokens=True) == ["a"]
    assert tokenizer.decode([1, 4, 5], skip_special_tokens=True) == "a b"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}]) == [4]
    assert tokenizer.add_tokens("d") == 1
    assert tokenizer.tokenize("a d") == ["a", "d"]


def test_saved_copied_and_pickled(repo, tmp_path):
    tokenizer = shardload.load_tokenizer(repo)
    tokenizer.save_pretrained(tmp_path / "again")
    again = shardload.load_tokenizer(tmp_path / "again")
    for other in (again, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode("a <new> x") == tokenizer.encode("a <new> x") == [1, 4, 7, 0]


def test_rows_know_their_encodings(repo):
    batch = shardload.load_tokenizer(repo)(["a", "b"])
    assert batch.is_fast
    assert batch[1].tokens == ["<s>", "b"]


def test_it_is_the_base_class_around_the_library_s_own_tokenizer(repo):
    tokenizer = shardload.load_tokenizer(repo)
    assert type(tokenizer) is PreTrainedTokenizerFast
    assert tokenizer.is_fast is True
    assert tokenizer.vocab_size == len(WORDS)
    assert len(tokenizer) == len(WORDS) + 1
    assert tokenizer.get_vocab() == tokenizer.backend_tokenizer.get_vocab()
