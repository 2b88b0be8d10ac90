"""Configs of parts: settings of the library's class under its names, and what code for transformers 4 reads."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from shardload.library_parts.importer import part_module
from shardload.transformers_shim.configuration_utils import PretrainedConfig

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")

from shardload.library_parts.bridges import config_base  # noqa: E402 - needs the library's files

HALF = [1.0] * 48
FAMILIES = {
    "LlamaConfig": {}, "Qwen2Config": {"rope_theta": 1e6}, "BartConfig": {"d_model": 16}, "GPT2Config": {"n_embd": 16},
    "Gemma2Config": {}, "Qwen2VLConfig": {}, "CLIPConfig": {}, "SiglipVisionConfig": {}, "HubertConfig": {},
    "Phi3Config": {"rope_scaling": {"type": "longrope", "short_factor": HALF, "long_factor": HALF}},
    "T5Config": {}, "WhisperConfig": {},
    "LlavaConfig": {}, "DeepseekV3Config": {}, "Dinov2Config": {},
    "BertConfig": {"id2label": {"0": "a", "1": "b", "2": "c"}},
}  # fmt: skip


def config_class(name):
    from shardload.library_parts.model_files import home_of

    return getattr(part_module(home_of(name)), name)


def same_settings(made, expected):
    for field in dataclasses.fields(expected):
        one, other = getattr(made, field.name), getattr(expected, field.name)
        if dataclasses.is_dataclass(other):
            assert type(one).__name__ == type(other).__name__
            same_settings(one, other)
        elif field.name != "transformers_version":
            assert one == other, field.name


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_are_those_of_the_librarys_own_class(name):
    made, expected = (kind(**FAMILIES[name]) for kind in (config_class(name), getattr(transformers, name)))
    assert isinstance(made, PretrainedConfig)
    same_settings(made, expected)


def test_old_code_finds_what_it_reads():
    config = config_class("LlamaConfig")(rope_scaling={"type": "dynamic", "factor": 2.0}, rope_theta=5000.0)
    assert (config.rope_theta, config.rope_scaling) == (5000.0, {"type": "dynamic", "factor": 2.0})
    assert config.rope_parameters["rope_type"] == "dynamic"
    assert (config.use_return_dict, config.is_decoder, config.max_length) == (True, False, 20)
    assert config_class("LlamaConfig")().rope_scaling is None
    assert (
        config_class("LlamaConfig")(dtype="bfloat16").torch_dtype
        == config_class("LlamaConfig")(torch_dtype="bfloat16").dtype
    )


def test_a_subclass_of_older_code_keeps_its_own_constructor():
    class Own(config_class("Qwen2Config")):
        model_type = "own"

        def __init__(self, extra=3, **kwargs):
            self.extra = extra
            super().__init__(**kwargs)

    config = Own(hidden_size=64, extra=4, unknown=5)
    assert (config.extra, config.hidden_size, config.unknown, config.num_hidden_layers) == (4, 64, 5, 32)
    assert Own.from_dict(config.to_dict()).extra == 4


def test_a_setting_that_is_needed_is_asked_for():
    class Needing(config_base.config_base()):
        model_type = "needing"
        width: int

    with pytest.raises(TypeError, match="Needing needs width"):
        Needing()
    assert Needing(width=3).width == 3


def test_kinds_of_layers_get_their_present_names():
    assert config_base.remap_legacy_layer_types(["attention", "mamba", "conv"]) == [
        "full_attention", "linear_attention", "conv",
    ]  # fmt: skip


def test_a_part_of_a_config_is_made_of_what_is_said_of_it():
    spec = config_base.SubConfigSpec(config_class("CLIPVisionConfig"), optional=True)
    made, rest = spec.create_subconfig("vision_config", {"hidden_size": 8}, other=1)
    assert (made.hidden_size, rest) == (8, {"other": 1})
    with pytest.raises(TypeError, match="vision_config is a int"):
        spec.create_subconfig("vision_config", 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"rope_theta": 500.0},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 700.0},
        {"rope_scaling": None},
        {"partial_rotary_factor": 0.25},
    ],
)
def test_rotary_settings_that_code_changes_afterwards_count(changed):
    base = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    base |= {"vocab_size": 7, "partial_rotary_factor": 0.5, "max_position_embeddings": 64, "rope_theta": 90.0}
    config = config_class("PhiConfig")(**base)
    for name, value in changed.items():
        setattr(config, name, value)
    expected = transformers.PhiModel(transformers.PhiConfig(**{**base, **changed})).rotary_emb
    made = part_module("models.phi.modeling_phi").PhiModel(config).rotary_emb
    assert torch.equal(made.inv_freq, expected.inv_freq)
    assert made.attention_scaling == expected.attention_scaling
    assert json.loads(config.to_json_string())["rope_parameters"] == config.rope_parameters
