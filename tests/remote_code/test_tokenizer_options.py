"""Settings of a tokenizer that a call overrules: each is one that the tokenizer has, or a misspelt keyword."""

from __future__ import annotations

import pytest

import shardload
from tests.transformers_shim.vocabularies import NEW, OLD, write


@pytest.mark.parametrize("code", [OLD, NEW])
def test_a_setting_of_the_call_overrules_that_of_the_files(tmp_path, code):
    folder = write(tmp_path, code)
    stored = shardload.load_tokenizer(folder, trust_remote_code=True)
    other = "right" if stored.padding_side == "left" else "left"
    given = {"padding_side": other, "model_max_length": 7, "use_fast": False}
    tokenizer = shardload.load_tokenizer(folder, trust_remote_code=True, **given)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == (other, 7)
    assert shardload.load_tokenizer(folder, trust_remote_code=True).padding_side == stored.padding_side


def test_a_setting_that_no_tokenizer_has_is_refused(tmp_path):
    folder = write(tmp_path, NEW)
    with pytest.raises(TypeError, match="'padding_sid'; the repo's tokenizer has no such setting") as caught:
        shardload.load_tokenizer(folder, trust_remote_code=True, padding_sid="left")
    assert caught.value.cure == "did you mean padding_side=…?"


def test_a_side_that_is_none_is_refused(tmp_path):
    folder = write(tmp_path, NEW)
    with pytest.raises(shardload.UsageError, match="padding_side is 'middle'") as caught:
        shardload.load_tokenizer(folder, trust_remote_code=True, padding_side="middle")
    assert caught.value.cure == "pass 'left' or 'right'"


def test_tokenizer_json_takes_settings_too(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.save(str(tmp_path / "tokenizer.json"))
    assert shardload.load_tokenizer(tmp_path, padding_side="left").padding_side == "left"
    with pytest.raises(shardload.UsageError, match="no such setting"):
        shardload.load_tokenizer(tmp_path, vocabulary="a")
