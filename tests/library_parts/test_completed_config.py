"""A repo's own config class given to a part: it has what the library's class makes of its settings."""

from __future__ import annotations

import copy

import pytest
import torch

from shardload.library_parts.importer import part_module
from shardload.transformers_shim.configuration_utils import PretrainedConfig

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")

SETTINGS = {
    "vocab_size": 7, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 90.0,
    "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0,
}  # fmt: skip


class OwnConfig(PretrainedConfig):
    model_type = "own"


def rotary(config):
    return part_module("models.llama.modeling_llama").LlamaRotaryEmbedding(config=config)


def of_the_library(**changed):
    config = transformers.LlamaConfig(**{**copy.deepcopy(SETTINGS), **changed})
    return transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config=config)


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 4.0},
        {"type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    ],
)
def test_scaled_rotary_embeddings_of_an_own_config(scaling):
    made = rotary(OwnConfig(**{**SETTINGS, "rope_scaling": dict(scaling)}))
    states, positions = torch.zeros(1, 80, 32), torch.arange(80)[None]
    expected = of_the_library(rope_scaling=dict(scaling))
    assert all(map(torch.equal, made(states, positions), expected(states, positions)))


def test_what_was_made_follows_a_setting_that_changes():
    config = OwnConfig(**SETTINGS)
    assert torch.equal(rotary(config).inv_freq, of_the_library().inv_freq)
    other = copy.deepcopy(config)
    other.rope_theta, other.hidden_size = 700.0, 64
    assert torch.equal(rotary(other).inv_freq, of_the_library(rope_theta=700.0, hidden_size=64).inv_freq)
    assert other.head_dim == 32
    other.rope_scaling = {"type": "linear", "factor": 2.0}
    expected = of_the_library(
        rope_theta=700.0, hidden_size=64, rope_scaling={"type": "linear", "factor": 2.0}
    )
    assert torch.equal(rotary(other).inv_freq, expected.inv_freq)
    assert torch.equal(rotary(config).inv_freq, of_the_library().inv_freq)


def test_what_code_says_itself_stays():
    config = OwnConfig(**SETTINGS)
    rotary(config)
    config.head_dim = 8
    config.hidden_size = 64
    assert len(rotary(config).inv_freq) == 4
    assert config.head_dim == 8
