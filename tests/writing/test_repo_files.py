"""What goes along with a merged or converted checkpoint, and what does not."""

from __future__ import annotations

import json

import pytest

from shardload import convert, merge_to_disk
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
