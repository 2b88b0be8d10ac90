"""A tokenizer saved into a folder and loaded from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shardload
from shardload.transformers_shim._tokenizer_files import FilesMixin
from tests.transformers_shim.vocabularies import new


def test_saved_and_loaded_it_encodes_alike(tmp_path):
    tokenizer = new(tmp_path / "a", {"model_max_length": 9, "chat_template": "{{ 1 }}"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    tokenizer.save_pretrained(tmp_path / "b")
    again = type(tokenizer).from_pretrained(tmp_path / "b")
    assert again.encode("a<x>b?") == tokenizer.encode("a<x>b?")
    assert (again.model_max_length, again.chat_template) == (9, "{{ 1 }}")
    assert json.loads((tmp_path / "b" / "special_tokens_map.json").read_text())["eos_token"] == "$"


def test_keywords_come_before_the_files_and_hub_options_reach_no_constructor(tmp_path):
    kind = type(new(tmp_path, {"model_max_length": 9, "eos_token": "!"}))
    assert issubclass(kind, FilesMixin)
    again = kind.from_pretrained(tmp_path, eos_token="$", use_fast=False, trust_remote_code=False, proxies={})
    assert (again.eos_token, again.model_max_length) == ("$", 9)
    assert not {"use_fast", "trust_remote_code", "proxies"} & set(again.init_kwargs)


def test_the_code_that_ran_is_saved_and_other_code_is_not_overwritten(tmp_path):
    tokenizer = new(tmp_path / "a")
    written = tokenizer.save_pretrained(tmp_path / "b")
    code = tmp_path / "b" / "tokenization_tiny.py"
    assert code.read_bytes() == (tmp_path / "a" / "tokenization_tiny.py").read_bytes()
    assert str(code) in written
    assert all(Path(name).is_file() for name in written)
    settings = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert settings["auto_map"] == {"AutoTokenizer": ["tokenization_tiny.NewTokenizer", None]}
    assert settings["tokenizer_class"] == "NewTokenizer"
    assert (
        shardload.load_tokenizer(tmp_path / "b", trust_remote_code=True)("ab").input_ids
        == tokenizer("ab").input_ids
    )
    code.write_text("# mine\n")
    (tmp_path / "b" / "tokenizer_config.json").unlink()
    with pytest.raises(shardload.UsageError, match="same name and other content"):
        tokenizer.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / "tokenizer_config.json").exists()  # nothing else was written before


def test_added_tokens_keep_their_options_and_a_prefix_is_put_in_front(tmp_path):
    tokenizer = new(tmp_path / "a")
    token = {"content": "<l>", "lstrip": True, "rstrip": False, "single_word": False, "special": False}
    tokenizer = new(tmp_path / "a", {"added_tokens_decoder": {"90": token}})
    tokenizer.save_pretrained(tmp_path / "b", filename_prefix="p")
    settings = json.loads((tmp_path / "b" / "p-tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"]["90"] == {**token, "normalized": True}
    assert "name_or_path" not in settings
