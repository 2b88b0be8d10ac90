"""Loads that leave nothing on the disk: of the Hub with disk=False, and of stores, in the memory that was stated."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import shardload
from shardload.checkpoint.sources.copies import Copies
from shardload.errors import CorruptError, UnsupportedError
from tests.store_server import StoreServer


def net(_config=None):
    return torch.nn.Sequential(torch.nn.Linear(700, 700), torch.nn.Linear(700, 900))


@pytest.fixture
def published(hub, tmp_path):
    """Publish a model in two shards, both over a megabyte; return the model."""
    torch.manual_seed(0)
    model, folder = net(), tmp_path / "net"
    shardload.save(model, folder, max_shard_size="2.6MB")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 700}))
    hub.commit("org/net", folder)
    return model


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_repo_of_the_hub_is_read_into_memory_and_the_cache_stays_empty(
    hub, cache, published, monkeypatch, tmp_path
):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    loaded = shardload.from_pretrained("org/net", model_class=net, disk=False, progress=False)
    assert all(
        torch.equal(one, two) for one, two in zip(loaded.parameters(), published.parameters(), strict=True)
    )
    assert files_below(cache) == []
    assert not (tmp_path / "tmp").exists()
    report = shardload.report_of(loaded)
    assert (report.stated.mapped, report.stated.anonymous) == (0, report.nbytes)
    assert hub.sent("model-00001-of-00002.safetensors") <= 2_600_000 + 2 * 64 * 1024
    plan = shardload.plan_load("org/net", disk=False)
    assert (plan.download, plan.held.file, plan.held.anon) == (0, 0, report.nbytes)


def test_what_is_cached_is_read_from_the_cache(hub, cache, published):
    shardload.from_pretrained("org/net", model_class=net, progress=False)
    hub.log.clear()
    loaded = shardload.from_pretrained("org/net", model_class=net, disk=False, progress=False)
    assert torch.equal(loaded[0].weight, published[0].weight)
    assert not [request for request in hub.requests if request.file]


def test_small_files_are_what_the_hub_lists_and_weights_have_no_path(hub, published):
    source = shardload.open_checkpoint("org/net", disk=False).source
    assert json.loads(source.open("config.json").local_path().read_text()) == {"hidden_size": 700}
    with pytest.raises(UnsupportedError, match="not on this disk"):
        source.open("model-00001-of-00002.safetensors").local_path()
    hub.fault("org/net", "config.json", shift=0, cut=3)
    hub.heal()
    file = source.open("config.json")
    file._reader._blocks[0] = b"x" * file.size
    with pytest.raises(CorruptError, match="not the file that the Hub lists"):
        file.read_at(0, 5)


def test_copies_are_made_once_and_of_no_large_file(tmp_path):
    class File:
        name, size = "sub/vocab.txt", 3

        def read_at(self, offset, length):
            return b"abc"[offset : offset + length]

    copies, file = Copies("s3://bucket/net"), File()
    assert copies.of(file).read_bytes() == b"abc"
    assert copies.of(file) == copies.of(file)
    file.size = 2**30
    with pytest.raises(UnsupportedError, match="not on this disk"):
        copies.of(file)


CHILD = """
import json, sys, torch, shardload
where, options = json.loads(sys.argv[1])
make = lambda _=None: torch.nn.Sequential(*[torch.nn.Linear(1500, 1500, bias=False) for _ in range(8)])
for dtype in ("bfloat16", "stored"):
    model = shardload.from_pretrained(where, model_class=make, storage_options=options, dtype=dtype, progress=False)
    report = shardload.report_of(model)
    taken = report.memory.peak.anon - report.memory.before.anon
    print(json.dumps([taken, report.stated.peak, report.stated.anonymous, report.stated.mapped]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_load_of_a_store_takes_the_memory_that_it_stated(tmp_path):
    pytest.importorskip("obstore")
    model = torch.nn.Sequential(*[torch.nn.Linear(1500, 1500, bias=False) for _ in range(8)])
    shardload.save(model, tmp_path / "net", max_shard_size="40MB")
    with StoreServer(
        {f"net/{path.name}": path.read_bytes() for path in (tmp_path / "net").iterdir()}
    ) as server:
        options = {name: value for name, value in server.options().items() if name != "retry_config"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps(["s3://bucket/net", options])],
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            check=True,
        )
    cast, kept = map(json.loads, done.stdout.splitlines())
    assert (cast[2:], kept[2:]) == ([36_000_000, 0], [72_000_000, 0])
    assert kept[0] <= kept[1] <= kept[2] + 64_000_000
    assert cast[0] <= cast[1]
    assert not (tmp_path / "tmp").exists()
