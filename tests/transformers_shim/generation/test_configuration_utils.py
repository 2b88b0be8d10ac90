"""GenerationConfig: the settings of generation, from the model's config, a file or a call."""

from __future__ import annotations

import copy
import json

import pytest

import shardload
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.generation.configuration_utils import GenerationConfig, GenerationMode
from tests.transformers_shim.generation.small_repos import likeliest, model, prompt


def test_settings_in_the_models_config(tmp_path):
    made = model(tmp_path, max_length=8, eos_token_id=22)
    assert made.generation_config.eos_token_id == 22
    assert made.generate(prompt()).shape == (1, 8)
    # Code changes the config after loading, and old releases followed.
    made.config.max_length = 11
    assert made.generate(prompt()).shape == (1, 11)
    made.generation_config.max_length = 7
    assert made.generate(prompt()).shape == (1, 7)


def test_generation_config_of_the_folder(tmp_path):
    made = model(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "chat_format": "raw"}))
    loaded = shardload.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.generation_config.chat_format == "raw"
    assert loaded.generate(prompt())[0].tolist() == likeliest(made, prompt(), 3)


def test_a_config_given_to_the_call_stays_as_it_is(tmp_path):
    made = model(tmp_path)
    settings = GenerationConfig(max_new_tokens=4, eos_token_id=[22, 21])
    before = copy.deepcopy(settings.to_dict())
    assert made.generate(prompt(), settings).shape == (1, 9)
    assert made.generate(prompt(), generation_config=settings, max_new_tokens=2).shape == (1, 7)
    assert settings.to_dict() == before
    assert made.generation_config.max_new_tokens is None


def test_update_returns_what_is_no_setting():
    settings = GenerationConfig(user_token_id=195)
    assert settings.update(top_k=3, user_token_id=7, attention_mask=1) == {"attention_mask": 1}
    assert (settings.top_k, settings.user_token_id) == (3, 7)
    assert settings.is_unchanged is False


def test_settings_through_a_file(tmp_path):
    settings = GenerationConfig(temperature=0.3, eos_token_id=[1, 2], stop_words_ids=[[5]])
    settings.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path, revision="main", top_k=7)
    assert (again.temperature, again.eos_token_id, again.stop_words_ids, again.top_k) == (
        0.3,
        [1, 2],
        [[5]],
        7,
    )
    again, unused = GenerationConfig.from_pretrained(tmp_path, return_unused_kwargs=True, top_k=7, other=1)
    assert (again.top_k, unused) == (7, {"other": 1})
    with pytest.raises(FileNotFoundError):
        GenerationConfig.from_pretrained(tmp_path / "nothing")


def test_settings_of_a_config_of_several_models():
    nested = PretrainedConfig(text_config={"eos_token_id": 9, "pad_token_id": 4}, pad_token_id=3)
    settings = GenerationConfig.from_model_config(nested)
    assert (settings.eos_token_id, settings.pad_token_id) == (9, 3)


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, GenerationMode.GREEDY_SEARCH),
        ({"top_k": 5}, GenerationMode.GREEDY_SEARCH),
        ({"do_sample": True}, GenerationMode.SAMPLE),
        ({"do_sample": True, "penalty_alpha": 0.5}, GenerationMode.SAMPLE),
        ({"num_beams": 2}, GenerationMode.BEAM_SEARCH),
        ({"prompt_lookup_num_tokens": 2}, GenerationMode.ASSISTED_GENERATION),
    ],
)
def test_which_way_settings_ask_for(settings, mode):
    assert GenerationConfig(**settings).get_generation_mode() is mode


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"num_beams": 2, "do_sample": True}, GenerationMode.BEAM_SAMPLE),
        ({"num_beams": 4, "num_beam_groups": 2}, GenerationMode.GROUP_BEAM_SEARCH),
        ({"force_words_ids": [[1]]}, GenerationMode.CONSTRAINED_BEAM_SEARCH),
        ({"penalty_alpha": 0.5, "top_k": 4}, GenerationMode.CONTRASTIVE_SEARCH),
        ({"penalty_alpha": 0.5, "top_k": 1}, GenerationMode.GREEDY_SEARCH),
    ],
)
def test_which_other_way_settings_ask_for(settings, mode):
    assert GenerationConfig(**settings).get_generation_mode() is mode


def test_only_what_differs_is_written():
    settings = GenerationConfig(temperature=0.3, chat_format="raw")
    assert json.loads(settings.to_json_string()) == {"temperature": 0.3, "chat_format": "raw"}
    whole = json.loads(settings.to_json_string(use_diff=False))
    assert whole == {**GenerationConfig().to_dict(), "temperature": 0.3, "chat_format": "raw"}
    assert settings == GenerationConfig(**settings.to_dict())
    assert settings != GenerationConfig()


def test_the_defaults_are_those_of_transformers():
    theirs = pytest.importorskip("transformers").GenerationConfig(
        **{name: value for name, value in GenerationConfig().to_dict().items() if value is not None}
    )
    for name, value in GenerationConfig().to_dict().items():
        if value is not None and name in theirs.to_dict():
            assert theirs.to_dict()[name] == value, name
