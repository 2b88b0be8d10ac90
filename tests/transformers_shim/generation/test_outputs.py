"""return_dict_in_generate: what is recorded at each step, and how a config decides."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import shardload
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.generation import GenerationConfig, GenerationMode
from tests.transformers_shim.generation.small_repos import likeliest, model, prompt


def test_records_of_each_step(tmp_path):
    made = model(tmp_path)
    output = made.generate(
        prompt(),
        max_new_tokens=4,
        repetition_penalty=1.5,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert type(output).__name__ == "GenerateDecoderOnlyOutput"
    assert output.sequences.shape == (1, 9)
    assert output["sequences"] is output[0]
    assert [s.shape for s in output.scores] == [(1, 23)] * 4
    assert [h[2].shape for h in output.hidden_states] == [(1, 5, 16), (1, 1, 16), (1, 1, 16), (1, 1, 16)]
    assert [a[0].shape for a in output.attentions] == [(1, 2, 5, 5), (1, 2, 1, 6), (1, 2, 1, 7), (1, 2, 1, 8)]
    assert output.past_key_values[0][0].shape == (1, 2, 8, 8)
    with torch.no_grad():
        logits = made(prompt()).logits[:, -1]
    assert torch.equal(output.logits[0], logits)
    seen = output.logits[0][0, 3]
    assert output.scores[0][0, 3] == (seen / 1.5 if seen > 0 else seen * 1.5)
    assert output.sequences[0, 5] == output.scores[0].argmax()


def test_what_is_not_asked_for_is_not_recorded(tmp_path):
    output = model(tmp_path).generate(prompt(), max_new_tokens=2, return_dict_in_generate=True)
    assert list(output) == ["sequences", "past_key_values"]
    assert output.scores is None


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
