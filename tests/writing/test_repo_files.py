"""What goes along with a merged or converted checkpoint, and what does not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from shardload import convert, merge_to_disk
from shardload.writing.repo_files import repo_files, with_dtype
from tests.adapters import tiny
from tests.adapters.merging.disk import BESIDE, base_of
from tests.adapters.tiny import Tiny


@pytest.mark.parametrize("how", ["merge", "convert"])
def test_what_goes_along_and_what_does_not(tmp_path, how):
    base = base_of(tmp_path / "base")
    for name in ("code/part.py", "notes/a/b.txt"):
        (base / name).parent.mkdir(parents=True)
        (base / name).write_text(name)
    adapter = tiny.write(base / "adapter", tiny.lora_tensors(Tiny()))
    (base / "onnx").mkdir()
    (base / "onnx/model.onnx").write_bytes(b"x")
    (base / "onnx/settings.json").write_text("{}")
    (base / "adapter_config.json").write_text("{}")
    (base / ".git").mkdir()
    (base / ".git/config").write_text("secret")
    if how == "merge":
        merge_to_disk(base, adapter, tmp_path / "out")
    else:
        convert(base, tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    shards = {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)} | {"model.safetensors.index.json"}
    if how == "convert":
        shards = {"model.safetensors"}
    assert found == {*BESIDE, *shards, "config.json", "code/part.py", "notes/a/b.txt"}


@pytest.mark.parametrize("how", ["merge", "convert"])
def test_the_config_says_the_new_dtype_wherever_it_said_one(tmp_path, how):
    base = base_of(tmp_path / "base")
    config = {
        "torch_dtype": "float32",
        "dtype": None,
        "vision_config": {"dtype": "float32", "dtype_of_names": 1},
        "named": {"dtype": "float32"},
    }
    (base / "config.json").write_text(json.dumps(config))
    if how == "merge":
        adapter = tiny.write(tmp_path / "adapter", tiny.lora_tensors(Tiny()))
        merge_to_disk(base, adapter, tmp_path / "out", dtype="float16")
    else:
        convert(base, tmp_path / "out", dtype="float16")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "torch_dtype": "float16",
        "dtype": "float16",
        "vision_config": {"dtype": "float16", "dtype_of_names": 1},
        "named": {"dtype": "float32"},
    }


def test_the_dtype_is_named_wherever_a_config_names_one():
    config = {
        "torch_dtype": "float16", "text_config": {"dtype": None, "inner_config": {"torch_dtype": "x"}},
        "quantization_config": {"dtype": "int8"}, "other": {"dtype": "kept"}, "dtype": 3,
    }  # fmt: skip
    assert with_dtype(config, "bfloat16") == {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "inner_config": {"torch_dtype": "bfloat16"}},
        "quantization_config": {"dtype": "int8"},
        "other": {"dtype": "kept"},
        "dtype": 3,
    }


def test_a_model_s_settings_are_written_without_where_they_came_from():
    config = {"a": 1, "_name_or_path": "/home/me", "_commit_hash": "x", "auto_map": {"AutoModel": "m.M"}}
    config |= {
        "_attn_implementation_autoset": True,
        "text_config": {"b": 2, "_attn_implementation_autoset": True},
    }
    model = SimpleNamespace(config=config, generation_config=SimpleNamespace(to_dict=lambda: {"top_k": 3}))
    files = repo_files(model, lambda model, auto_map: ({"m.py": b"code"}, dict(auto_map)))
    assert files["m.py"] == b"code"
    assert json.loads(files["config.json"]) == {
        "a": 1,
        "text_config": {"b": 2},
        "auto_map": {"AutoModel": "m.M"},
    }
    assert json.loads(files["generation_config.json"]) == {"top_k": 3}
    with pytest.warns(UserWarning, match="auto_map is left out"):
        files = repo_files(model, lambda model, auto_map: ({}, {}))
    assert json.loads(files["config.json"]) == {"a": 1, "text_config": {"b": 2}}
    assert repo_files(SimpleNamespace(), None) == {}
