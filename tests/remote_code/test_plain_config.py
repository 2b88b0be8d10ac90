"""A plain config.json with the caller's own class: attributes, no file of the stand-in, and its answers when asked."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import shardload
from shardload.errors import CorruptError, UsageError
from shardload.remote_code import load_config
from shardload.remote_code.plain_config import PlainConfig
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.where import CodeTrust
from tests.tiny import run_python, write_checkpoint

from .repos import AUTO_MAP, MODEL, tiny

SETTINGS = {
    "width": 4,
    "torch_dtype": "bfloat16",
    "id2label": {"0": "no", "1": "yes", "2": "perhaps"},
    "pruned_heads": {"1": [2]},
    "eos_token_id": 7,
    "nested": {"a": [1]},
    "attn_implementation": "eager",
    "transformers_version": "4.30.0",
}
SHIM = str(Path(shardload.__file__).parent / "transformers_shim")


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, config.width, dtype=config.torch_dtype)


def checkpoint(folder, settings=SETTINGS):
    shardload.save(nn.ModuleDict({"linear": nn.Linear(4, 4)}), folder)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def folder(tmp_path):
    return checkpoint(tmp_path / "plain")


def config_of(folder, **options):
    return shardload.load_config(folder, **options)


def entered(operation):
    """Return the files of the stand-in in which a function is called while an operation runs."""
    files = set()

    def profile(frame, event, _argument):
        if event == "call" and frame.f_code.co_filename.startswith(SHIM):
            files.add(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        operation()
    finally:
        sys.setprofile(None)
    return files


def test_a_load_with_the_callers_class_enters_no_file_of_the_stand_in(folder):
    assert not entered(lambda: shardload.from_pretrained(folder, model_class=Model))
    model = shardload.from_pretrained(folder, model_class=Model, dtype="float32")
    assert model.config.torch_dtype is torch.float32
    assert model.config.nested == {"a": [1]}
    assert type(model.config) is PlainConfig
    assert entered(lambda: model.config.use_cache)  # the trace sees what is entered


def test_in_a_fresh_process_it_imports_nothing_of_the_stand_in_but_its_host(folder):
    code = """
import sys, shardload
from torch import nn
model = shardload.from_pretrained(sys.argv[1], model_class=lambda c: nn.ModuleDict({"linear": nn.Linear(c.width, 4)}))
print([name for name in sys.modules if name.startswith("shardload.transformers_shim.")])
"""
    assert run_python(code, str(folder)).stdout == "['shardload.transformers_shim.host']\n"


@pytest.mark.parametrize("settings", [SETTINGS, {}, {"num_labels": 5, "attribute": None, "use_cache": False}])
def test_it_answers_every_question_as_the_stand_ins_config_does(tmp_path, settings):
    folder = checkpoint(tmp_path / "plain", settings)
    name = {"_name_or_path": str(folder)}
    theirs = PretrainedConfig.from_dict({**name, **settings})
    for asked in (name for name in dir(theirs) if not name.startswith("__")):
        ours = config_of(folder)
        assert type(ours) is PlainConfig
        value, expected = getattr(ours, asked), getattr(theirs, asked)
        if callable(expected):
            assert value.__func__ is expected.__func__
        else:
            assert value == expected, asked
    ours = config_of(folder)
    assert ours.to_dict() == theirs.to_dict()
    assert ours == theirs


def test_a_name_that_no_config_has_is_an_error_that_says_where(folder):
    config = config_of(folder)
    assert not hasattr(config, "quantization_config")
    assert getattr(config, "rope_scaling", None) is None
    assert type(config) is PlainConfig
    with pytest.raises(AttributeError, match=r"config\.json of .*plain does not say 'n_layer'"):
        _ = config.n_layer


def test_what_was_changed_is_kept_when_it_becomes_the_stand_ins_config(folder):
    config = config_of(folder)
    config.width, config.use_cache, config.extra = 8, False, [1]
    assert config.use_return_dict is True
    assert (config.width, config.use_cache, config.extra) == (8, False, [1])
    config.num_labels = 5
    assert (type(config), len(config.id2label)) == (PretrainedConfig, 5)


def test_it_is_copied_compared_and_pickled(folder):
    config = config_of(folder)
    for again in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert (type(again), again) == (PlainConfig, config)
    again = copy.deepcopy(config)
    again.nested["a"].append(2)
    assert again != config
    assert "width" in repr(config)
    code = "import pickle, sys; c = pickle.load(open(sys.argv[1], 'rb')); print(c.width, c.torch_dtype, c.num_labels)"
    (folder / "config.pkl").write_bytes(pickle.dumps(config))
    assert run_python(code, str(folder / "config.pkl")).stdout == "4 torch.bfloat16 3\n"


def test_a_saved_model_has_its_config(folder, tmp_path):
    model = shardload.from_pretrained(folder, model_class=Model)
    shardload.save(model, tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (written["width"], written["torch_dtype"]) == (4, "bfloat16")
    assert type(shardload.from_pretrained(tmp_path / "again", model_class=Model).config) is PlainConfig


def test_a_class_on_the_stand_ins_base_gets_what_that_asks_for(folder):
    from shardload.transformers_shim.modeling_utils import PreTrainedModel

    class Mine(PreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.linear = nn.Linear(config.width, config.width)
            self.post_init()

    model = shardload.from_pretrained(folder, model_class=Mine)
    assert type(model.config) is PretrainedConfig
    assert model.name_or_path == str(folder)


@pytest.mark.parametrize("settings", [{"pruned_heads": 3}, {"id2label": ["a"]}])
def test_settings_that_no_config_can_have_are_an_error_once_they_are_needed(tmp_path, settings):
    config = config_of(checkpoint(tmp_path / "plain", {"width": 4, **settings}))
    assert config.width == 4
    with pytest.raises(CorruptError, match="settings") as caught:
        _ = config.use_cache
    assert "config.json of" in caught.value.where


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("torch.float16", torch.float16), ("int8", torch.int8)]
)
def test_dtypes_are_read_by_all_their_names(tmp_path, name, dtype):
    assert config_of(checkpoint(tmp_path / "plain", {"torch_dtype": name})).torch_dtype is dtype
    tiny(tmp_path / "repo")
    settings = json.loads((tmp_path / "repo" / "config.json").read_text())
    (tmp_path / "repo" / "config.json").write_text(json.dumps({**settings, "torch_dtype": name}))
    assert config_of(tmp_path / "repo", trust_remote_code=True).torch_dtype is dtype


def test_a_repos_model_without_a_config_class_gets_the_stand_ins(tmp_path):
    auto_map = {"AutoModel": AUTO_MAP["AutoModel"]}
    model = MODEL.replace("from .configuration_tiny import TinyConfig\n", "").replace("TinyConfig", "None")
    source, config = tiny(tmp_path, model=model)
    loaded = load_config(source, {**config, "auto_map": auto_map}, CodeTrust(True))
    assert type(loaded.config) is PretrainedConfig


def test_a_model_is_not_taken_for_a_class(tmp_path):
    folder = write_checkpoint(tmp_path, torch.nn.Linear(2, 2).state_dict())
    with pytest.raises(UsageError, match="a Linear is a model, and a class is wanted"):
        shardload.from_pretrained(folder, model_class=torch.nn.Linear(2, 2), config={})
