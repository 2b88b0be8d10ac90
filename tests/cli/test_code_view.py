"""`shardload inspect --code`: what the code asks for, and which of the installed library's files would serve it."""

from __future__ import annotations

import json

import pytest

from shardload.cli import code_view, run
from shardload.library_parts.model_files import needed_files
from shardload.where import Where
from tests.remote_code.repos import CONFIG, MODEL, tiny

WRAPS = """
from transformers import PreTrainedModel, Qwen2ForCausalLM, Trainer
from transformers.models.siglip.modeling_siglip import SiglipVisionModel
"""


def shown(capsys, *arguments):
    assert run(["inspect", *arguments, "--code"]) == 0
    return capsys.readouterr().out


def test_files_names_and_packages_are_listed(tmp_path, capsys):
    tiny(tmp_path, model=MODEL)
    text = shown(capsys, str(tmp_path))
    assert "file that would run" in text
    assert "modeling_tiny.py" in text
    assert "transformers.PretrainedConfig" in text
    assert "would run beside it" not in text
    code_view.show(Where(tmp_path), as_json=False)
    assert capsys.readouterr().out == text


def test_a_repo_without_code_says_so(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert "names no code" in shown(capsys, str(tmp_path))


def test_parts_are_named_with_their_files(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    tiny(tmp_path, model=WRAPS, config=CONFIG)
    text = shown(capsys, str(tmp_path))
    assert "placeholder; has a part" in text
    assert "placeholder: raises when it is used" in text  # Trainer has none
    assert f"file of transformers {transformers.__version__} that would run beside it" in text
    document = json.loads(shown(capsys, str(tmp_path), "--json"))
    expected = needed_files(["models.qwen2.modeling_qwen2", "models.siglip.modeling_siglip"])
    assert [each["module"] for each in document["parts"]] == list(expected)
    parts = {name["name"]: name["part"] for name in document["names"]}
    assert parts["transformers.Qwen2ForCausalLM"] == "models.qwen2.modeling_qwen2"
    assert parts["transformers.Trainer"] is None
