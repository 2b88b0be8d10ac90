"""A tokenizer's files: what its class is constructed with, and files that are none."""

from __future__ import annotations

import json
import re

import pytest

import shardload
from shardload import CorruptError
from shardload.checkpoint.sources import find_source
from shardload.remote_code.tokenizer_files import constructor_arguments, tokenizer_settings
from tests.transformers_shim.vocabularies import NEW, write


def test_vocabulary_files_that_are_missing_or_pointers(tmp_path):
    folder = write(tmp_path, NEW)
    (folder / "letters.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(shardload.CorruptError, match="Git-LFS pointer"):
        shardload.load_tokenizer(folder, trust_remote_code=True)
    (folder / "letters.json").unlink()
    with pytest.raises(shardload.NotFoundError, match="vocabulary files"):
        shardload.load_tokenizer(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 3}}'),
        ("special_tokens_map.json", "3"),
        ("added_tokens.json", '{"a": "b"}'),
    ],
)
def test_malformed_settings_are_corrupt(tmp_path, name, text):
    folder = write(tmp_path, NEW)
    if name == "tokenizer_config.json" and text.startswith('{"'):
        settings = json.loads((folder / name).read_text())
        text = json.dumps({**settings, **json.loads(text)})
    (folder / name).write_text(text)
    with pytest.raises(shardload.CorruptError):
        shardload.load_tokenizer(folder, trust_remote_code=True)


class Class:
    vocab_files_names = {"vocab_file": "./letters.json", "merges_file": "merges.txt"}  # noqa: RUF012


def arguments(folder, **files):
    for name, document in {"letters_json": {}, **files}.items():
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / re.sub(r"_(json|jinja)$", r".\1", name)).write_text(text)
    return constructor_arguments(find_source(folder)[0], Class)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (
            {"unk_token": {"content": 3}, "added_tokens_decoder": {"1": {"content": "x"}}},
            "unk_token is .*no token",
        ),
        ({"eos_token": {"text": "x"}}, "eos_token is .*no token"),
        (
            {"additional_special_tokens": ["a", {"content": [1]}], "added_tokens_decoder": {}},
            "additional_special_tokens is .*no token",
        ),
        ({"model_max_length": {"a": 1}}, "model_max_length is .*, not a number"),
        ({"model_max_length": "512"}, "model_max_length is '512', not a number"),
        ({"max_len": True}, "max_len is True, not a number"),
        ({"model_input_names": 5}, "model_input_names is 5, not a list of names"),
        ({"chat_template": 3}, "chat_template is 3, not a template"),
    ],
)
def test_a_setting_of_another_kind_is_corrupt(tmp_path, settings, what):
    with pytest.raises(CorruptError, match=what) as refused:
        arguments(tmp_path, tokenizer_config_json=settings)
    assert "tokenizer_config.json" in str(refused.value.cure)


def test_a_length_may_be_absent_or_very_large(tmp_path):
    settings = {"model_max_length": 1e30, "max_len": None, "unk_token": None}
    assert arguments(tmp_path, tokenizer_config_json=settings)["model_max_length"] == 1e30


def test_vocabulary_files_are_paths_and_those_that_lack_are_none(tmp_path):
    found = arguments(tmp_path)
    assert found["vocab_file"] == str(tmp_path / "letters.json")
    assert found["merges_file"] is None


def test_settings_are_arguments_without_what_describes_the_class(tmp_path):
    settings = {
        "auto_map": {},
        "tokenizer_class": "X",
        "tokenizer_file": "t",
        "init_inputs": [],
        "model_max_length": 9,
    }
    assert tokenizer_settings(find_source(tmp_path)[0]) == {}
    found = arguments(tmp_path, tokenizer_config_json=settings)
    assert found["model_max_length"] == 9
    assert not {"auto_map", "tokenizer_class", "tokenizer_file", "init_inputs"} & found.keys()


def test_added_tokens_have_their_options_wherever_they_are_named(tmp_path):
    listed = {"7": {"content": "<x>", "lstrip": True, "special": True}}
    found = arguments(
        tmp_path,
        tokenizer_config_json={"added_tokens_decoder": listed, "eos_token": "<x>", "pad_token": "_"},
        special_tokens_map_json={"unk_token": "?"},
    )
    assert found["added_tokens_decoder"][7].lstrip is True
    assert found["eos_token"] is found["added_tokens_decoder"][7]
    assert str(found["pad_token"]) == "_"
    assert (
        "unk_token" not in found
    )  # settings that list added tokens are from a release that wrote all of them


def test_the_files_of_older_releases_fill_in_what_the_settings_lack(tmp_path):
    found = arguments(
        tmp_path,
        tokenizer_config_json={"eos_token": "</s>"},
        special_tokens_map_json={
            "eos_token": "other",
            "unk_token": {"content": "?", "rstrip": True},
            "no_such": "x",
        },
        added_tokens_json={"</s>": 3, "<a>": 2},
    )
    assert str(found["eos_token"]) == "</s>"
    assert found["unk_token"].rstrip is True
    assert "no_such" not in found
    added = found["added_tokens_decoder"]
    assert {index: str(token) for index, token in added.items()} == {2: "<a>", 3: "</s>"}
    assert (added[3].special, added[2].special) == (True, False)


def test_a_template_of_its_own_file_comes_before_the_settings(tmp_path):
    found = arguments(tmp_path, tokenizer_config_json={"chat_template": "settings"})
    assert found["chat_template"] == "settings"
    found = arguments(tmp_path, chat_template_json={"chat_template": "json"})
    assert found["chat_template"] == "json"
    assert arguments(tmp_path, chat_template_jinja="jinja")["chat_template"] == "jinja"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(shardload.CorruptError, match="not UTF-8"):
        arguments(tmp_path)
