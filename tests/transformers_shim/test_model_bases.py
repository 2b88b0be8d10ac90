"""The config class and the base class that code takes from the module of one model."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import shardload
from shardload.errors import RemoteCodeError
from tests.remote_code.repos import AUTO_MAP, build, tiny, write

CONFIG = """
from transformers import XConfig

class TinyConfig(XConfig):
    model_type = "tiny"

    def __init__(self, n_embd=4, use_bias=True, **kwargs):
        self.use_bias = use_bias
        super().__init__(n_embd=n_embd, **kwargs)
"""
MODEL = """
from torch import nn
from transformers.models.x.modeling_x import XPreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_tiny import TinyConfig

class TinyModel(XPreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.x = nn.Linear(config.hidden_size, config.n_inner, bias=config.use_bias)
        self.post_init()

    def forward(self, x):
        return BaseModelOutput(last_hidden_state=self.x(x))
"""


def test_settings_come_from_config_json_and_standard_names_are_found(tmp_path):
    source, config = tiny(tmp_path, config=CONFIG, model=MODEL)
    model = build(source, {**config, "n_embd": 6, "n_inner": 8, "use_bias": False})
    assert model.x.weight.shape == (8, 6)
    assert model.config.hidden_size == model.config.n_embd == 6
    assert not hasattr(model.config, "num_hidden_layers")
    assert model.base_model is model.x
    assert model.config.to_dict()["n_inner"] == 8


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="it serves the repo then")
def test_a_default_that_config_json_does_not_say_is_named(tmp_path):
    source, config = tiny(
        tmp_path, config=CONFIG, model=f"{MODEL}\n# code of its own: equal files are one namespace\n"
    )
    with pytest.raises(RemoteCodeError, match=r"transformers\.XConfig\(\)\.n_inner") as caught:
        build(source, config)
    assert caught.value.where == f"{tmp_path / 'modeling_tiny.py'}:13"


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="it serves the repo then")
def test_settings_by_position_are_the_models_own(tmp_path):
    source, config = tiny(tmp_path, config=CONFIG.replace("(n_embd=n_embd, ", "(n_embd, "), model=MODEL)
    with pytest.raises(RemoteCodeError, match=r"transformers\.XConfig\(…\) with settings by position"):
        build(source, config)


def test_such_a_repo_loads(tmp_path):
    files = {"configuration_tiny.py": CONFIG, "modeling_tiny.py": MODEL}
    write(tmp_path, files, {"auto_map": AUTO_MAP, "n_inner": 2, "use_bias": False})
    weight = torch.arange(8.0).reshape(2, 4)
    torch.save({"x.weight": weight}, tmp_path / "pytorch_model.bin")
    model = shardload.from_pretrained(tmp_path, trust_remote_code=True)
    assert shardload.report_of(model).remote_base == "shim"
    assert torch.equal(model(torch.eye(4)).last_hidden_state, weight.T)


def test_defaults_of_every_config_are_not_the_models_own(tmp_path):
    transformers = pytest.importorskip("transformers")
    code = """
from torch import nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel, Qwen2Config

class TinyConfig(PretrainedConfig):
    def __init__(self, text=None, image=None, **kwargs):
        self.text, self.image = Qwen2Config(**(text or {})), BertConfig(**(image or {}))
        super().__init__(**kwargs)

class Tiny(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config.image)
        self.x = nn.Linear(4, 2, bias=False)
"""
    text = {"eos_token_id": None}
    image = {
        "hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 4,
    }  # fmt: skip
    auto_map = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.Tiny"}
    settings = {"auto_map": auto_map, "text": text, "image": image}
    made = build(*write(tmp_path, {"modeling_tiny.py": code}, settings)).config
    for part, expected in (
        (made.text, transformers.Qwen2Config(**text)),
        (made.image, transformers.BertConfig(**image)),
    ):
        for name in ("tie_word_embeddings", "pad_token_id", "eos_token_id", "use_cache"):
            assert getattr(part, name) == getattr(expected, name), name
