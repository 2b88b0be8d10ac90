"""What a repo's code does wrong becomes one typed error, whatever it raises."""

from __future__ import annotations

import json
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from shardload import CorruptError, RemoteCodeError, UsageError, from_pretrained, load_config, resolve_class
from shardload.remote_code import load_config as load_repo_config
from shardload.remote_code.failures import explain, release_of
from shardload.where import CodeTrust
from tests.remote_code.repos import CONFIG, MODEL, build, tiny
from tests.tiny import save_safetensors

EXIT = "import sys; sys.exit(0)"


def test_an_exit_in_an_imported_file_is_a_failure(tmp_path):
    with pytest.raises(RemoteCodeError, match="while importing .*SystemExit"):
        build(*tiny(tmp_path, model=EXIT + "\n" + MODEL))


def test_an_exit_in_the_model_is_a_failure(tmp_path):
    model = MODEL.replace("super().__init__(config)", f"super().__init__(config)\n        {EXIT}")
    with pytest.raises(RemoteCodeError, match="while constructing .*SystemExit"):
        build(*tiny(tmp_path, model=model))


def test_an_exit_in_the_config_is_a_failure(tmp_path):
    source, config = tiny(tmp_path, config=CONFIG.replace("super()", f"{EXIT}\n        super()"))
    with pytest.raises(RemoteCodeError, match="while making the config .*SystemExit"):
        load_repo_config(source, config, CodeTrust(True))


def test_the_cure_of_a_failure_is_one_that_the_command_line_has_too(tmp_path):
    with pytest.raises(RemoteCodeError, match="ZeroDivisionError") as caught:
        build(*tiny(tmp_path, model="1 / 0\n" + MODEL))
    assert "modeling_tiny.py:1" in caught.value.where
    assert "traceback" not in caught.value.cure
    assert "model_class=" in caught.value.cure


def test_an_import_under_a_computed_name_is_not_called_a_missing_file(tmp_path):
    computed = "import importlib\nname = 'other'\nimportlib.import_module(f'.{name}', __package__)\n"
    with pytest.raises(RemoteCodeError, match=r"other\.py under a name that is computed") as caught:
        build(*tiny(tmp_path / "there", model=computed + MODEL, other_py="x = 1\n"))
    assert "download" not in caught.value.cure
    with pytest.raises(RemoteCodeError, match=r"other\.py, which .* does not have"):
        build(*tiny(tmp_path / "absent", model=computed + MODEL + "# alone\n"))


@pytest.mark.parametrize("named", [5, "LlamaForCausalLM", [5], {"a": 1}, True])
def test_architectures_that_are_no_names(tmp_path, named):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": named}))
    save_safetensors({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    for step in (from_pretrained, resolve_class):
        with pytest.raises(CorruptError, match="architectures"):
            step(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1, "a": 2}', "[1]", '{"__class__": 1}'])
def test_a_broken_generation_config_stops_the_load_before_a_weight_is_read(tmp_path, text):
    tiny(tmp_path, model=MODEL + "\n    def prepare_inputs_for_generation(self, x): return {}\n")
    (tmp_path / "generation_config.json").write_text(text)
    state = {"linear.weight": torch.ones(4, 4), "linear.bias": torch.ones(4)}
    save_safetensors(state, tmp_path / "model.safetensors")
    read = []
    with pytest.raises(CorruptError, match=r"generation_config\.json"):
        from_pretrained(tmp_path, trust_remote_code=True, progress=read.append)
    assert read == []


@pytest.mark.parametrize("given", [5, "Net", {"a": 1}])
def test_a_model_class_that_can_not_be_called(tmp_path, given):
    save_safetensors({"weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="can't be called"):
        from_pretrained(tmp_path, model_class=given)


def test_the_class_of_a_repo_is_found_without_running_its_config_class(tmp_path):
    tiny(tmp_path, config=CONFIG.replace("super()", "raise ValueError('it ran')\n        super()"))
    assert resolve_class(tmp_path, trust_remote_code=True)
    with pytest.raises(RemoteCodeError, match="it ran"):
        load_config(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize(
    ("config", "release"),
    [
        ({"transformers_version": "4.41.0"}, "transformers 4.41.0"),
        ({"transformers_version": "4.46.0.dev0"}, "transformers 4.46.0"),
        ({"transformers_version": 4}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_release_is_that_which_config_json_names(config, release):
    assert release_of(config) == release


def test_every_error_of_a_repo_s_code_becomes_one_with_its_line_and_a_cure(tmp_path):
    path = tmp_path / "m.py"
    path.write_text("x = 1\nraise ValueError('no')\n")
    code = SimpleNamespace(
        files=[SimpleNamespace(path=path)], untaken=frozenset({"lazy.py"}), label="org/name"
    )
    namespace = SimpleNamespace(package="pkg", code=code, base="shim")
    with pytest.raises(ValueError) as caught:
        exec(compile(path.read_text(), str(path), "exec"), {})
    told = explain(caught.value, namespace, "importing it")
    assert told.where == f"{path}:2"
    assert "failed while importing it: ValueError: no" in told.what
    assert explain(told, namespace, "x") is told
    package = explain(ModuleNotFoundError("x", name="cv2.inner"), namespace, "x")
    assert ("package cv2" in package.what, package.cure) == (True, "pip install opencv-python")
    assert (
        "imports its own file absent.py"
        in explain(ModuleNotFoundError("x", name="pkg.absent"), namespace, "x").what
    )
    assert "computed while it runs" in explain(ModuleNotFoundError("x", name="pkg.lazy"), namespace, "x").what


def test_code_that_asks_for_files_of_another_repo(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asks = "from transformers.utils import cached_file\n        cached_file(config.tower, 'config.json')"
    source, config = tiny(tmp_path, model=MODEL.replace("self.linear =", f"{asks}\n        self.linear ="))
    with pytest.raises(RemoteCodeError, match="asks for files of another repo, org/tower") as caught:
        build(source, {**config, "tower": "org/tower"})
    assert "hf download org/tower" in caught.value.cure
    assert "whose tower is a folder that has it" in caught.value.cure


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_where_parts_and_the_whole_library_fail_the_error_has_both(tmp_path):
    """A part's own class is not the library's: the code can tell who serves it, and fails in another way each time."""
    fails = """super().__init__(config)
        from transformers import LlamaModel
        LlamaModel.forward
        raise TypeError("by parts" if "shardload" in LlamaModel.__module__ else "by the library")"""
    model = MODEL.replace("super().__init__(config)", fails)
    with pytest.raises(RemoteCodeError) as raised:
        build(*tiny(tmp_path, model=model))
    assert "TypeError: by the library" in str(raised.value)
    assert "with parts of it: TypeError: by parts at" in str(raised.value)
    assert "modeling_tiny.py:" in str(raised.value)
