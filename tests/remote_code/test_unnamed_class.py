"""A class that lies in the repo, and that no auto_map names."""

from __future__ import annotations

import json

import pytest
import torch

import shardload
from shardload import UsageError
from shardload.remote_code.unnamed_class import find_unnamed
from tests.remote_code.repos import AUTO_MAP, CONFIG, MODEL, local, tiny
from tests.tiny import save_safetensors

STATE = {"linear.weight": torch.ones(4, 4), "linear.bias": torch.ones(4)}


def test_the_entry_that_the_error_prints_loads_the_repo(tmp_path):
    tiny(tmp_path)
    save_safetensors(STATE, tmp_path / "model.safetensors")
    config = {"architectures": ["TinyModel"], "hidden_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"modeling_tiny\.py of the repo defines TinyModel") as caught:
        shardload.from_pretrained(tmp_path, trust_remote_code=True)
    assert "pip install" not in caught.value.cure
    entry = str(caught.value.cure).split("add ")[1].split(" to config.json")[0]
    assert json.loads("{" + entry + "}") == {"auto_map": AUTO_MAP}
    (tmp_path / "config.json").write_text(json.dumps(config)[:-1] + f", {entry}}}")
    assert shardload.report_of(shardload.from_pretrained(tmp_path, trust_remote_code=True)).loaded == 2


def test_what_is_looked_for_and_what_is_passed_over(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a_broken.py").write_text("def (:")
    (tmp_path / "b_bytes.py").write_bytes(b"\xff\x00")
    (tmp_path / "c_other.py").write_text(MODEL)
    (tmp_path / "inner" / "modeling_tiny.py").write_text(MODEL)
    (tmp_path / "inner" / "configuration_tiny.py").write_text(CONFIG)
    found = find_unnamed(local(tmp_path), ["Absent", "TinyModel"])
    assert (found.file, found.name) == ("inner/modeling_tiny.py", "TinyModel")
    assert found.auto_map == {
        "AutoConfig": "inner.configuration_tiny.TinyConfig",
        "AutoModel": "inner.modeling_tiny.TinyModel",
    }
    assert find_unnamed(local(tmp_path), ["Absent"]) is None
