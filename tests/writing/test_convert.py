"""convert: streamed, whole or absent, and what a load through the same map gives."""

from __future__ import annotations

import json

import pytest
import torch

from shardload import KeyMap, UnsupportedError, UsageError, convert, diff, fill, open_checkpoint
from shardload.checkpoint.sources import ranges
from shardload.model.shell import build_shell
from tests.hub_server import HubServer, forget_connections
from tests.keymap.random_maps import RandomMap
from tests.loading.test_fill_key_map import module_of
from tests.tiny import run_python, tensor_bytes, write_checkpoint


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_a_load_through_a_map_is_a_load_of_what_the_map_converted(tmp_path, kind):
    for seed in range(100, 112):
        case = RandomMap(seed, most_rules=8)
        state = {name: torch.randn(shape) for name, shape in case.source.items()}
        source = write_checkpoint(tmp_path / f"a{seed}", state, shards=min(3, len(state)), kind=kind)
        bound = case.key_map.bind(open_checkpoint(source).tensors)
        convert(source, tmp_path / f"b{seed}", key_map=bound, max_shard_size=300, progress=False)
        converted = open_checkpoint(tmp_path / f"b{seed}")
        shell = build_shell(lambda refs=converted.tensors: module_of({k: r.shape for k, r in refs.items()}))
        fill(shell, open_checkpoint(source), key_map=bound, progress=False)
        loaded = shell.model.state_dict()
        assert loaded.keys() == converted.tensors.keys()
        for name, tensor in loaded.items():
            assert tensor_bytes(tensor) == tensor_bytes(converted.read(name)), (seed, name)


def test_there_and_back_is_the_same_byte_for_byte(tmp_path):
    for seed in range(200, 212):
        case = RandomMap(seed, most_rules=8)
        state = {name: torch.randn(shape) for name, shape in case.source.items()}
        source = write_checkpoint(tmp_path / f"a{seed}", state, shards=min(2, len(state)))
        bound = case.key_map.bind(open_checkpoint(source).tensors)
        convert(source, tmp_path / f"b{seed}", key_map=bound, progress=False)
        convert(tmp_path / f"b{seed}", tmp_path / f"c{seed}", key_map=bound.invert(), progress=False)
        back = open_checkpoint(tmp_path / f"c{seed}")
        assert back.tensors.keys() == state.keys()
        for name, tensor in state.items():
            assert tensor_bytes(back.read(name)) == tensor_bytes(tensor), (seed, name)


def test_bin_to_safetensors_with_another_dtype_and_what_stands_beside(tmp_path):
    state = {"a": torch.randn(6, 4), "ids": torch.arange(5), "h": torch.randn(3).half()}
    config = {"torch_dtype": "float32", "text_config": {"dtype": "float32"}, "hidden": 4}
    source = write_checkpoint(tmp_path / "a", state, kind="bin", shards=2, config=config)
    (source / "tokenizer.json").write_text("{}")
    (source / "modeling_x.py").write_text("x = 1")
    (source / ".hidden").write_text("no")
    (source / "flax_model.msgpack").write_bytes(b"weights of another kind")
    written = convert(source, tmp_path / "b", dtype=torch.bfloat16, max_shard_size=60, progress=False)
    assert sorted(path.name for path in written.files) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "modeling_x.py",
        "tokenizer.json",
    ]
    again = open_checkpoint(tmp_path / "b")
    assert torch.equal(again.read("a"), state["a"].bfloat16())
    assert torch.equal(again.read("ids"), state["ids"])
    assert again.read("h").dtype == torch.bfloat16
    assert again.config == {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16"},
        "hidden": 4,
    }


def test_large_tensors_go_through_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("shardload.writing.blocks._BLOCK", 100)
    state = {
        "a": torch.randn(20, 7),
        "b": torch.randn(20, 3),
        "e.0": torch.randn(9, 5),
        "e.1": torch.randn(9, 5),
    }
    source = write_checkpoint(tmp_path / "a", state, shards=2)
    key_map = KeyMap().cat(["a", "b"], "ab", dim=1).stack("e.{n}", "e").transpose("e").pad_rows("ab", 31, 0.5)
    convert(source, tmp_path / "b", key_map=key_map, dtype="float16", progress=False)
    again = open_checkpoint(tmp_path / "b")
    ab = torch.cat([torch.cat([state["a"], state["b"]], 1), torch.full((11, 10), 0.5)]).half()
    assert torch.equal(again.read("ab"), ab)
    assert torch.equal(again.read("e"), torch.stack([state["e.0"], state["e.1"]]).transpose(1, 2).half())


def test_what_can_not_be_written_is_refused_before_anything_is(tmp_path):
    odd = tmp_path / "odd.pt"
    torch.save({"w": torch.ones(2), "step": 3}, odd)
    with pytest.raises(UsageError, match="1 entries that are no tensors"):
        convert(odd, tmp_path / "b", progress=False)
    convert(odd, tmp_path / "b", key_map={"step": None}, progress=False)
    assert list(open_checkpoint(tmp_path / "b").tensors) == ["w"]
    torch.save({"w": torch.ones(2, dtype=torch.complex128)}, odd)
    with pytest.raises(UnsupportedError, match="complex128"):
        convert(odd, tmp_path / "c", progress=False)
    with pytest.raises(UsageError, match="dtype="):
        convert(odd, tmp_path / "c", dtype="int8", progress=False)
    with pytest.raises(UsageError, match="nothing to write"):
        convert(odd, tmp_path / "c", key_map={"w": None}, progress=False)
    with pytest.raises(UsageError, match="folder that it is made from"):
        convert(tmp_path / "b", tmp_path / "b", progress=False)
    assert not (tmp_path / "c").exists()


KILLED = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import shardload.writing.convert, shardload.keymap.assembly
import shardload.checkpoint.shard  # so that a child begins to write at once
from shardload import KeyMap, convert

source, whole, out = sys.argv[1:]

def child(folder):
    pid = os.fork()
    if pid == 0:
        key_map = KeyMap().cat(["layers.{}.a", "layers.{}.b"], "layers.{}.ab")
        convert(source, folder, key_map=key_map, dtype="float16", max_shard_size="600kB", progress=False)
        os._exit(0)
    return pid

started = time.monotonic()
os.waitpid(child(whole), 0)
span = time.monotonic() - started
rng = random.Random(3)
for _ in range(20):
    pid = child(out)
    time.sleep(rng.uniform(0.02, 1.0) * span)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    journal = Path(out, ".shardload-output", ".journal")
    names = os.listdir(out) if os.path.isdir(out) else []
    finished = len(journal.read_text().splitlines()) - 1 if journal.exists() else 0
    complete = "model.safetensors.index.json" in names
    equal = complete and all(Path(out, n).read_bytes() == Path(whole, n).read_bytes() for n in os.listdir(whole))
    print(json.dumps({"complete": complete, "equal": equal, "names": names, "finished": finished}))
    if complete:
        shutil.rmtree(out)
os.waitpid(child(out), 0)
"""


def test_killed_at_twenty_moments_it_is_whole_or_absent_and_goes_on(tmp_path):
    state = {f"layers.{n}.{w}": torch.randn(256, 256) for n in range(8) for w in ("a", "b")}
    source = write_checkpoint(tmp_path / "a", state, kind="bin", shards=3, config={"torch_dtype": "float32"})
    whole, out = tmp_path / "whole", tmp_path / "out"
    ends = [
        json.loads(line) for line in run_python(KILLED, *map(str, (source, whole, out))).stdout.splitlines()
    ]
    assert len(ends) == 20
    for end in ends:
        # Without an index there is nothing that a loader would take for a checkpoint.
        assert end["equal"] if end["complete"] else "model.safetensors" not in end["names"]
    assert any(end["finished"] for end in ends if not end["complete"]), "none went on from finished files"
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


MEMORY = """
import json, sys, threading, time, torch
from shardload import KeyMap, convert

def anon():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

convert(sys.argv[1], sys.argv[2], dtype="float16", progress=False)  # imports are not measured
before, peak, stop = anon(), [0], threading.Event()
def sample():
    while not stop.is_set():
        peak[0] = max(peak[0], anon())
        time.sleep(0.003)
thread = threading.Thread(target=sample)
thread.start()
key_map = KeyMap().cat(["layers.{}.a", "layers.{}.b"], "layers.{}.ab", dim=1).transpose("layers.{}.ab")
convert(sys.argv[3], sys.argv[4], key_map=key_map, dtype="float16", progress=False)
stop.set()
thread.join()
print(json.dumps(peak[0] - before))
"""


def test_the_peak_is_a_block_whatever_the_size(tmp_path):
    small = write_checkpoint(tmp_path / "s", {"a": torch.ones(2, 2)}, shards=1)
    state = {f"layers.{n}.{w}": torch.ones(4096, 2048) for n in range(2) for w in ("a", "b")}
    big = write_checkpoint(tmp_path / "b", state, kind="bin", shards=2)
    del state
    out = run_python(MEMORY, str(small), str(tmp_path / "s2"), str(big), str(tmp_path / "b2"))
    # A block of 64 MiB put together, its cast, and its contiguous copy: 64 + 32 + 32 MB.
    assert 32e6 < json.loads(out.stdout) < 150e6
    assert open_checkpoint(tmp_path / "b2").tensors["layers.0.ab"].shape == (4096, 4096)


def test_a_repo_of_the_hub_is_converted_with_what_stands_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "RETRY_DELAYS", (0, 0, 0))
    state = {"m.a": torch.randn(30, 4), "m.b": torch.randn(7)}
    folder = write_checkpoint(
        tmp_path / "repo", state, config={"torch_dtype": "float32"}, kind="bin", shards=2
    )
    (folder / "tokenizer.json").write_text("{}")
    with HubServer(tmp_path / "hub") as server:
        server.use(monkeypatch, cache=tmp_path / "cache")
        commit = server.commit("org/model", folder)
        rename = KeyMap().rename("m.{...}", "{...}")
        convert("org/model", tmp_path / "out", revision=commit, key_map=rename, progress=False)
        forget_connections()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert diff(folder, tmp_path / "out", key_map=rename, values=True, progress=False).ok
