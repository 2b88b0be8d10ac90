"""`remote_base`: who serves a repo's imports of transformers."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

import shardload
from shardload.cli import run
from shardload.errors import RemoteCodeError, UsageError
from shardload.remote_code.library import processor_class, tokenizer_class
from shardload.transformers_shim.modeling_utils import PreTrainedModel

from .repos import MODEL, build, tiny

LACKING = "from transformers.dynamic_module_utils import get_class_in_module\n"
installed = importlib.util.find_spec("transformers") is not None
without = pytest.mark.skipif(installed, reason="transformers is installed")


def checkpoint(folder, model=MODEL):
    tiny(folder, model=model)
    torch.save(
        {"linear.weight": torch.ones(4, 4), "linear.bias": torch.zeros(4)}, folder / "pytorch_model.bin"
    )
    return folder


@pytest.mark.parametrize("base", ["auto", "shim"])
def test_the_stand_in_serves_by_default_and_by_choice(tmp_path, base):
    model = shardload.from_pretrained(checkpoint(tmp_path), trust_remote_code=True, remote_base=base)
    assert isinstance(model, PreTrainedModel)
    assert shardload.report_of(model).remote_base == "shim"
    assert shardload.report_of(model).to_dict()["remote_base"] == "shim"


def test_the_real_transformers_serves_by_choice(tmp_path):
    transformers = pytest.importorskip("transformers")
    where = checkpoint(tmp_path)
    model = shardload.from_pretrained(where, trust_remote_code=True, remote_base="transformers")
    assert isinstance(model, transformers.PreTrainedModel)
    assert isinstance(model.config, transformers.PretrainedConfig)
    assert shardload.report_of(model).remote_base == "transformers"
    assert "the installed transformers" in str(shardload.report_of(model))
    # The choice of one load is not that of the next.
    again = shardload.from_pretrained(where, trust_remote_code=True)
    assert shardload.report_of(again).remote_base == "shim"


def test_a_config_of_the_one_is_remade_for_the_other(tmp_path):
    transformers = pytest.importorskip("transformers")
    where = checkpoint(tmp_path)
    config = shardload.load_config(where, trust_remote_code=True, remote_base="shim")
    make = shardload.resolve_class(where, trust_remote_code=True, remote_base="transformers")
    assert isinstance(make(config).config, transformers.PretrainedConfig)


def test_the_choice_of_the_stand_in_is_kept_where_it_lacks_a_name(tmp_path):
    with pytest.raises(RemoteCodeError, match="dynamic_module_utils"):
        shardload.from_pretrained(
            checkpoint(tmp_path, LACKING + MODEL), trust_remote_code=True, remote_base="shim"
        )


@without
def test_the_real_transformers_must_be_installed(tmp_path):
    with pytest.raises(UsageError, match="not installed"):
        shardload.from_pretrained(checkpoint(tmp_path), trust_remote_code=True, remote_base="transformers")


def test_other_bases_are_refused(tmp_path):
    with pytest.raises(UsageError, match="choose one of: auto, shim, parts, transformers"):
        shardload.from_pretrained(checkpoint(tmp_path), trust_remote_code=True, remote_base="real")


def test_the_command_has_the_choice(tmp_path, capsys):
    where = str(checkpoint(tmp_path))
    assert run(["load", where, "--trust-remote-code", "--remote-base", "shim", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remote_base"] == "shim"
    code = run(["load", where, "--trust-remote-code", "--remote-base", "transformers"])
    assert code == (0 if installed else 2)
    assert installed or "not installed" in capsys.readouterr().err


FAILS = MODEL.replace("super().__init__(config)", "super().__init__(config)\n        {}['type']")


@pytest.mark.parametrize("named", ["4.38.1", "4.38.1.dev0"])
def test_code_that_the_installed_transformers_can_not_serve_names_the_release_that_can(tmp_path, named):
    transformers = pytest.importorskip("transformers")
    source, config = tiny(tmp_path, model=FAILS)
    written = {**config, "transformers_version": named}
    with pytest.raises(RemoteCodeError, match="KeyError: 'type'") as caught:
        build(source, written, remote_base="transformers")
    assert f"served by the installed transformers {transformers.__version__}" in caught.value.what
    assert "pip install transformers==4.38.1)" in caught.value.cure
    # Where that release is the one that served it, or nothing names one, the code itself is at fault.
    for version in (transformers.__version__, None, "latest"):
        with pytest.raises(RemoteCodeError) as caught:
            build(source, {**config, "transformers_version": version}, remote_base="transformers")
        assert "correct that line" in caught.value.cure


def test_an_import_that_the_installed_transformers_lacks_names_the_release_that_has_it(tmp_path):
    pytest.importorskip("transformers")
    source, config = tiny(tmp_path, model="from transformers import no_such_function\n" + MODEL)
    with pytest.raises(RemoteCodeError, match="does not fit the installed transformers") as caught:
        build(source, {**config, "transformers_version": "4.38.1"})
    assert "pip install transformers==4.38.1)" in caught.value.cure


@without
def test_a_name_that_the_stand_in_lacks_names_the_release_to_install(tmp_path):
    for line in (LACKING, "import transformers; transformers.modeling_utils.lacking\n"):
        source, config = tiny(tmp_path / str(len(line)), model=line + MODEL)
        with pytest.raises(RemoteCodeError) as caught:
            build(source, {**config, "transformers_version": "4.38.1"})
        assert "(`pip install transformers==4.38.1`)" in caught.value.cure


def test_a_name_of_a_file_is_a_class_of_its_kind_or_nothing():
    assert processor_class("NoSuchClass", "AutoImageProcessor") is None
    assert tokenizer_class("LlamaForCausalLM") is None
    transformers = pytest.importorskip("transformers")
    found = processor_class("WhisperFeatureExtractor", "AutoFeatureExtractor")
    assert found is transformers.WhisperFeatureExtractor
    assert processor_class("WhisperFeatureExtractor", "AutoProcessor") is None
    assert processor_class("WhisperProcessor", "AutoProcessor") is transformers.WhisperProcessor
