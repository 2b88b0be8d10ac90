from __future__ import annotations

import pytest
import torch

from shardload import merge_to_disk
from shardload.adapters import load_adapter
from shardload.errors import NotFoundError
from tests.adapters.tiny import TOKENS, Tiny, by_hand, lora_tensors, write
from tests.hub_server import HubServer
from tests.tiny import write_checkpoint


def test_an_adapter_of_a_hub_repo(tmp_path, monkeypatch):
    tensors = lora_tensors(Tiny())
    folder = write(tmp_path / "adapter", tensors)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with HubServer(tmp_path / "hub") as hub:
        commit = hub.commit("me/lora", {**files, "README.md": b"# LoRA", "optimizer.pt": b"not wanted"})
        hub.use(monkeypatch, cache=tmp_path / "cache")
        model = Tiny()
        report = load_adapter(model, "me/lora")
        assert hub.fetched() == {"adapter_config.json", "adapter_model.safetensors"}
        with pytest.raises(NotFoundError):
            load_adapter(Tiny(), "me/nothing")
    assert report.where == f"me/lora@{commit}/adapter_model.safetensors"
    assert torch.allclose(model(TOKENS), by_hand(Tiny(), tensors, 3.0), atol=1e-5)
    offline = Tiny()
    load_adapter(offline, "me/lora", revision=commit, local_files_only=True)
    assert torch.equal(offline(TOKENS), model(TOKENS))


def test_a_merge_of_a_hub_repo_with_a_hub_adapter(tmp_path, monkeypatch):
    """The output is a folder of its own: files of the cache may be linked, and are never written into."""
    tensors = lora_tensors(Tiny())
    base = write_checkpoint(tmp_path / "base", Tiny(torch.float16).state_dict(), config={"a": 1})
    adapter = write(tmp_path / "adapter", tensors)
    merge_to_disk(base, adapter, tmp_path / "local")
    with HubServer(tmp_path / "hub") as hub:
        commit = hub.commit("me/base", base)
        hub.commit("me/lora", adapter)
        hub.use(monkeypatch, cache=tmp_path / "cache")
        report = merge_to_disk("me/base", "me/lora", tmp_path / "out")
    assert report.base == f"me/base@{commit}"
    cached = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    for path in (tmp_path / "local").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
        assert not (tmp_path / "out" / path.name).is_symlink()
    again = merge_to_disk("me/base", "me/lora", tmp_path / "offline", local_files_only=True)
    assert again.least_share == report.least_share
    assert all(path.read_bytes() == content for path, content in cached.items())
