"""PretrainedConfig as old code expects it."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

from shardload.errors import UnsupportedError
from shardload.transformers_shim.configuration_utils import PretrainedConfig


class Named(PretrainedConfig):
    model_type = "named"
    attribute_map = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}  # noqa: RUF012

    def __init__(self, n_embd=8, n_layer=2, **kwargs):
        self.n_embd = n_embd
        self.n_layer = n_layer
        super().__init__(**kwargs)


def test_the_old_defaults_are_there():
    config = PretrainedConfig()
    expected = {
        "max_length": 20,
        "use_cache": True,
        "pad_token_id": None,
        "is_decoder": False,
        "is_encoder_decoder": False,
        "use_return_dict": True,
        "tie_word_embeddings": True,
        "output_hidden_states": False,
        "output_attentions": False,
        "torch_dtype": None,
        "num_labels": 2,
        "problem_type": None,
        "pruned_heads": {},
        "top_p": 1.0,
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_unknown_keyword_arguments_become_attributes():
    assert PretrainedConfig(rope_scaling={"type": "linear", "factor": 2}).rope_scaling == {
        "type": "linear",
        "factor": 2,
    }


def test_torch_dtype_is_a_dtype_however_it_is_given():
    for dtype in ("float16", "torch.float16", torch.float16):
        assert PretrainedConfig(torch_dtype=dtype).torch_dtype is torch.float16
    with pytest.raises(ValueError, match="float17"):
        PretrainedConfig(torch_dtype="float17")


def test_attribute_map_gives_second_names():
    config = Named(hidden_size=16)
    assert config.hidden_size == config.n_embd == 16
    config.num_hidden_layers = 5
    assert config.n_layer == 5
    assert "hidden_size" not in config.to_dict()


def test_labels():
    config = PretrainedConfig(num_labels=3)
    assert (config.num_labels, config.id2label[2], config.label2id["LABEL_1"]) == (3, "LABEL_2", 1)
    config = PretrainedConfig(id2label={"0": "no", "1": "yes", "2": "?"})
    assert (config.num_labels, config.id2label[1]) == (3, "yes")


def test_to_dict_and_back():
    config = Named(n_embd=16, torch_dtype="bfloat16", nested=PretrainedConfig(a=1), free="x")
    data = json.loads(json.dumps(config.to_dict()))
    assert (data["model_type"], data["torch_dtype"], data["nested"]["a"]) == ("named", "bfloat16", 1)
    again = Named.from_dict(data)
    assert (again.n_embd, again.torch_dtype, again.free) == (16, torch.bfloat16, "x")


def test_from_dict_with_keywords_and_the_unused_ones():
    config, unused = Named.from_dict({"n_embd": 4}, n_embd=5, other=1, return_unused_kwargs=True)
    assert (config.n_embd, unused) == (5, {"other": 1})


def test_save_and_load_a_folder(tmp_path):
    Named(n_embd=12, torch_dtype="float16").save_pretrained(tmp_path)
    again = Named.from_pretrained(tmp_path)
    assert (again.n_embd, again.torch_dtype, again.name_or_path) == (12, torch.float16, str(tmp_path))


def test_loading_from_the_hub_by_a_config_class_is_declined_by_name():
    with pytest.raises(UnsupportedError, match=r"Named.from_pretrained"):
        Named.from_pretrained("org/name")


def test_copies_and_pickles():
    config = Named(n_embd=3, torch_dtype="float16")
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    config.pruned_heads[1] = [2]
    assert PretrainedConfig().pruned_heads == {}


def test_text_config():
    config = PretrainedConfig(text_config=Named())
    assert config.get_text_config() is config.text_config
    assert config.text_config.get_text_config() is config.text_config


def test_tuples_are_returned_under_torchscript_or_on_request():
    assert PretrainedConfig(return_dict=False).use_return_dict is False
    assert PretrainedConfig(torchscript=True).use_return_dict is False


def test_attention_implementation():
    assert PretrainedConfig()._attn_implementation == "eager"
    assert PretrainedConfig(attn_implementation="sdpa")._attn_implementation == "sdpa"
    of_a_file = {"attn_implementation": "sdpa"}  # which transformers 4 overwrites with the caller's
    assert PretrainedConfig.from_dict(of_a_file)._attn_implementation == "eager"
    assert PretrainedConfig.from_dict(of_a_file, attn_implementation="eager")._attn_implementation == "eager"
    assert PretrainedConfig.from_dict({}, attn_implementation="sdpa")._attn_implementation == "sdpa"
    assert PretrainedConfig.from_dict({"_attn_implementation": "sdpa"})._attn_implementation == "sdpa"
