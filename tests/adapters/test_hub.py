from __future__ import annotations

import pytest
import torch

from shardload.adapters import load_adapter
from shardload.errors import NotFoundError
from tests.adapters.tiny import TOKENS, Tiny, by_hand, lora_tensors, write
from tests.hub_server import HubServer


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
