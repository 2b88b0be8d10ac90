"""resolve_class: which class is built, and what is said when there is none."""

from __future__ import annotations

import importlib.util

import pytest
from torch import nn

from shardload.errors import UnsupportedError, UsageError
from shardload.model.shell import build_shell
from shardload.remote_code import load_config, resolve_class
from shardload.where import CodeTrust

from .repos import MODEL, build, tiny, write

TWO = MODEL + "\nclass TinyHead(TinyModel):\n    pass\n"


def test_auto_map_wins_over_architectures(tmp_path):
    source, config = tiny(tmp_path, model=TWO)
    model = build(source, {**config, "architectures": ["LlamaForCausalLM"]})
    assert type(model).__name__ == "TinyModel"


def test_causal_lm_is_preferred_and_auto_class_decides_otherwise(tmp_path):
    source, config = tiny(tmp_path, model=TWO)
    config["auto_map"] = {**config["auto_map"], "AutoModelForCausalLM": "modeling_tiny.TinyHead"}
    assert type(build(source, config)).__name__ == "TinyHead"
    assert type(build(source, config, auto_class="AutoModel")).__name__ == "TinyModel"


def test_an_entry_whose_file_is_absent_does_not_hinder_the_others(tmp_path):
    source, config = tiny(tmp_path)
    config["auto_map"] = {**config["auto_map"], "AutoModelForImageClassification": "modeling_vision.V"}
    assert type(build(source, config)).__name__ == "TinyModel"


def test_any_callable_of_the_config_is_a_model_class(tmp_path):
    source, config = write(tmp_path, {}, {"width": 3})
    resolved = resolve_class(source, config, model_class=lambda c: nn.Linear(c["width"], 1))
    assert resolved.make({"width": 3}).in_features == 3
    assert resolved.remote_base is None


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (None, "no config.json"),
        ({}, "neither auto_map nor architectures"),
        ({"architectures": []}, "neither"),
    ],
)
def test_without_any_class_the_error_says_what_to_pass(tmp_path, config, what):
    source, _ = write(tmp_path, {})
    with pytest.raises(UsageError, match=what) as caught:
        resolve_class(source, config)
    assert "model_class=" in caught.value.cure


def test_a_class_that_transformers_lacks_or_that_lacks_transformers(tmp_path):
    source, _ = write(tmp_path, {})
    with pytest.raises(UsageError, match="NoSuchModelForAnything") as caught:
        resolve_class(source, {"architectures": ["NoSuchModelForAnything"]})
    assert "model_class=" in caught.value.cure
    if importlib.util.find_spec("transformers") is None:
        assert "pip install transformers" in caught.value.cure
    else:
        assert "lacks" in caught.value.what


def test_a_constructor_that_looks_at_weights_is_explained_by_the_shell(tmp_path):
    looking = MODEL.replace(
        "config.hidden_size)\n", "config.hidden_size)\n        self.linear.weight[0, 0].item()\n", 1
    )
    source, config = tiny(tmp_path, model=looking)
    resolved = resolve_class(source, config, CodeTrust(True))
    loaded = load_config(source, config, CodeTrust(True))
    with pytest.raises(UnsupportedError, match="looks at the values"):
        build_shell(lambda: resolved.make(loaded.config))


def test_only_auto_class_for_a_repo_without_code(tmp_path):
    source, _ = write(tmp_path, {})
    with pytest.raises(UsageError, match="AutoModelForNothing"):
        resolve_class(source, {"model_type": "llama"}, auto_class="AutoModelForNothing")


def test_the_folder_of_an_adapter_is_no_model(tmp_path):
    source, _ = write(tmp_path, {"adapter_config.json": "{}"})
    with pytest.raises(UsageError, match="this is an adapter") as caught:
        resolve_class(source, None)
    assert caught.value.cure.keywords == {"adapter": source.label}


BY_ITS_CLASS = """
from torch import nn
from transformers import PreTrainedModel
from transformers.models.gpt2.configuration_gpt2 import GPT2Config

class TinyModel(PreTrainedModel):
    config_class = GPT2Config

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)
"""


def test_a_config_without_a_class_in_auto_map_is_of_the_models_config_class(tmp_path):
    settings = {"n_embd": 8, "model_type": "gpt2", "auto_map": {"AutoModel": "code.TinyModel"}}
    source = write(tmp_path, {"code.py": BY_ITS_CLASS}, settings)
    for base in ("shim", "parts", "transformers") if importlib.util.find_spec("transformers") else ("shim",):
        made = build(*source, remote_base=base)
        assert made.linear.weight.shape == (8, 8)
        assert type(made.config).__name__ == "GPT2Config"
