"""What goes along with a merged checkpoint, and what does not."""

from __future__ import annotations

from shardload import (
    merge_to_disk,
)
from tests.adapters import tiny
from tests.adapters.merging.disk import (
    BESIDE,
    base_of,
)
from tests.adapters.tiny import Tiny


def test_what_goes_along_and_what_does_not(tmp_path):
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
    merge_to_disk(base, adapter, tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    shards = {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)} | {"model.safetensors.index.json"}
    assert found == {*BESIDE, *shards, "config.json", "code/part.py", "notes/a/b.txt"}
