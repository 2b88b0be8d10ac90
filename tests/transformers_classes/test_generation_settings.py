"""Settings of generation in config.json, where there is no generation_config.json; the oracle is transformers."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from shardload import CorruptError, from_pretrained, report_of, save
from shardload.transformers_classes.generation_settings import take_from_config_json

transformers = pytest.importorskip("transformers")
new = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 keeps the settings in the config"
)

BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "vocab_size": 99,
}  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
CASES = {
    "summaries": ("BartForConditionalGeneration", BART, {
        "num_beams": 4, "length_penalty": 2.0, "max_length": 42, "min_length": 6, "no_repeat_ngram_size": 3,
        "early_stopping": True, "forced_bos_token_id": 0,
    }),
    "for some tasks": ("GPT2LMHeadModel", GPT2, {"task_specific_params": {"text-generation": {"max_length": 50}}}),
    "scores": ("T5ForConditionalGeneration", T5, {"num_beams": 3, "output_scores": True}),
    "sampling": ("LlamaForCausalLM", SMALL, {
        "temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [2, 3], "max_new_tokens": 7,
    }),
    "none": ("LlamaForCausalLM", SMALL, {}),
    "a class that does not generate": ("BertModel", SMALL, {"num_beams": 3}),
}  # fmt: skip


def write(model, folder, more):
    """Write a model as repos were written before generation_config.json; return the folder."""
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


def settings_of(model):
    settings = getattr(model, "generation_config", None)
    return None if settings is None else settings.to_dict()


@pytest.mark.filterwarnings(
    "ignore:.*return_dict_in_generate.*output_scores"
)  # transformers 4 says it at each
@pytest.mark.parametrize("case", CASES)
def test_they_are_taken_up_as_transformers_takes_them_up(tmp_path, case):
    name, sizes, more = CASES[case]
    cls = getattr(transformers, name)
    where = write(cls(cls.config_class(**sizes)), tmp_path, more)
    ours = from_pretrained(where)
    assert settings_of(ours) == settings_of(cls.from_pretrained(where))
    own = from_pretrained(where, model_class=type("Own", (cls,), {}))
    assert settings_of(own) == settings_of(ours)


@new
def test_those_of_a_decoder_are_taken_up_too(tmp_path):
    parts = [transformers.BertConfig(**SMALL), transformers.BertConfig(**SMALL, is_decoder=True)]
    parts[1].add_cross_attention = True
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    model = transformers.EncoderDecoderModel(config=config)
    written = json.loads((write(model, tmp_path, {}) / "config.json").read_text())
    where = write(model, tmp_path, {"decoder": {**written["decoder"], "num_beams": 5, "max_length": 77}})
    ours = from_pretrained(where)
    assert ours.generation_config.num_beams == 5
    assert settings_of(ours) == settings_of(transformers.EncoderDecoderModel.from_pretrained(where))


@new
def test_the_report_names_them_and_a_saved_model_has_them(tmp_path):
    name, sizes, more = CASES["summaries"]
    cls = getattr(transformers, name)
    where = write(cls(cls.config_class(**sizes)), tmp_path / "repo", more)
    ours = from_pretrained(where)
    (note,) = (note for note in report_of(ours).notes if "model.generation_config" in note)
    assert all(setting in note for setting in more)
    save(ours, tmp_path / "saved")
    again, theirs = from_pretrained(tmp_path / "saved"), cls.from_pretrained(tmp_path / "saved")
    assert settings_of(again) == settings_of(theirs) == settings_of(ours)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again.generate(ids), cls.from_pretrained(where).generate(ids))


@new
def test_a_file_of_their_own_wins(tmp_path):
    where = write(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)), tmp_path, {"top_p": 0.5})
    (where / "generation_config.json").write_text('{"temperature": 0.7}')
    ours = from_pretrained(where)
    assert (ours.generation_config.temperature, ours.generation_config.top_p) == (0.7, None)
    assert settings_of(ours) == settings_of(transformers.LlamaForCausalLM.from_pretrained(where))


@new
def test_settings_that_are_refused_are_one_typed_error(tmp_path):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    before = model.generation_config
    with pytest.raises(CorruptError, match="settings of generation that are refused: ValueError") as caught:
        take_from_config_json(model, {"max_new_tokens": -1}, "config.json of repo")
    assert caught.value.where == "config.json of repo"
    assert model.generation_config is before
    where = write(model, tmp_path, {"max_new_tokens": -1})
    with pytest.raises(ValueError, match="max_new_tokens"):
        transformers.LlamaForCausalLM.from_pretrained(where)
    with pytest.raises(CorruptError, match="max_new_tokens"):
        from_pretrained(where)


@new
def test_a_class_that_takes_them_up_its_own_way_is_left_alone():
    class Own(transformers.LlamaForCausalLM):
        def adjust_generation_fn(self, *_args, **_kwargs):
            """Do nothing."""

    model = Own(transformers.LlamaConfig(**SMALL))
    before = model.generation_config
    assert take_from_config_json(model, {"num_beams": 3}, "config.json") is None
    assert model.generation_config is before
    assert not hasattr(nn.Linear, "adjust_generation_fn")
