import importlib.util
import json

import pytest
import torch
from torch import nn

from shardload import KeyMap
from tests.tiny import write_checkpoint

STATE = {f"m.{n}.{w}": torch.ones(50, 20) for n in range(2) for w in ("gate", "x", "up")}
MAP = KeyMap().rename("m.{...}", "layers.{...}").cat(["layers.{}.gate", "layers.{}.up"], "layers.{}.gate_up")


def test_plan_says_what_a_load_would_take(tmp_path, call_cli):
    where = write_checkpoint(tmp_path / "w", STATE)
    (tmp_path / "map.json").write_text(MAP.to_json())
    done = call_cli("plan", where, "--map", tmp_path / "map.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hold      8.0 kB file-backed, 16.0 kB anonymous" in done.stdout
    assert "16.0 kB anonymous, and at most 40.0 MB to work in" in done.stdout
    assert "cat layers.{}.gate + layers.{}.up -> layers.{}.gate_up" in done.stdout
    assert "joined: 2 tensors, 16.0 kB of new memory" in done.stdout
    done = call_cli("plan", where, "--dtype", "bf16", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == "shardload.plan/1"
    assert document["held"] == {"anon": 12_000, "file": 0, "device": 0}


def test_what_does_not_fit_is_a_finding(tmp_path, call_cli, write_headers):
    path = write_headers({"huge": (1 << 20, 1 << 18)})
    done = call_cli("plan", path, "--dtype", "float32")
    assert done.returncode == 1
    assert "it does not fit" in done.stdout


def test_a_map_that_does_not_fit_is_a_usage_error(tmp_path, call_cli):
    where = write_checkpoint(tmp_path / "w", STATE)
    (tmp_path / "map.json").write_text(KeyMap().cat(["m.{}.gate", "m.{}.down"], "m.{}.gd").to_json())
    done = call_cli("plan", where, "--map", tmp_path / "map.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "m.0.gd lacks its part m.0.down" in done.stderr


def test_map_apply_and_invert(tmp_path, call_cli):
    where = write_checkpoint(tmp_path / "w", STATE)
    (tmp_path / "map.json").write_text(MAP.to_json())
    done = call_cli("map", "invert", tmp_path / "map.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a cat without sizes has no inverse" in done.stderr
    done = call_cli("map", "apply", tmp_path / "map.json", where, "-o", tmp_path / "bound.json")
    assert done.returncode == 0
    assert "6 stored tensors become 4" in done.stdout
    assert "layers.{0-1}.gate_up  [100, 20] float32" in done.stdout
    bound = KeyMap.read(tmp_path / "bound.json")
    assert bound.source.keys == 6
    done = call_cli("map", "invert", tmp_path / "bound.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert KeyMap.from_json(done.stdout) == bound.invert()
    done = call_cli("map", "apply", tmp_path / "bound.json", where, "--json")
    assert json.loads(done.stdout)["tensors"]["layers.0.gate_up"] == {
        "shape": [100, 20],
        "dtype": "float32",
        "from": ["m.0.gate", "m.0.up"],
    }
    other = write_checkpoint(tmp_path / "o", STATE | {"m.0.x": torch.ones(2)})
    done = call_cli("map", "apply", tmp_path / "bound.json", other)
    assert (done.returncode, done.stdout) == (2, "")
    assert "another checkpoint" in done.stderr


def test_ranks_are_a_table(tmp_path, call_cli):
    where = write_checkpoint(tmp_path / "c", {"layers.0.up.weight": torch.ones(512, 512)})
    done = call_cli("plan", where, "--fsdp", "2", "--tp", "2", "--tp-plan", "layers.*.up=colwise")
    assert done.returncode == 2
    assert "the output of layers.0.up stays cut" in done.stderr
    done = call_cli("plan", where, "--fsdp", "2", "--tp", "2", "--tp-plan", "layers.*.up=colwise_rep")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0-3" in done.stdout
    assert "262.1 kB" in done.stdout
    assert "the plan cuts 1 of 1 tensors 2 ways" in done.stdout
    ranks = json.loads(call_cli("plan", where, "--fsdp", "3", "--json").stdout)["ranks"]
    assert [rank["read"] for rank in ranks] == [171 * 2048, 171 * 2048, 170 * 2048]
    done = call_cli("plan", where, "--tp", "2")
    assert done.returncode == 2
    assert "--tp-plan" in done.stderr
    assert "modules layers.*.up" in done.stderr


OWN = """
from torch import nn
def make(config):
    return nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 96), nn.Linear(96, 8))
"""


@pytest.mark.parametrize("bits", [8, 4])
def test_a_load_that_quantises_takes_what_the_plan_says(tmp_path, monkeypatch, call_cli, bits):
    (tmp_path / "own_layers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(96, 64), nn.Linear(64, 96), nn.Linear(96, 8))
    where = write_checkpoint(tmp_path / "w", model.state_dict())
    arguments = [where, "--model-class", "own_layers:make", f"--load-in-{bits}bit", "--json"]
    if importlib.util.find_spec("bitsandbytes") is None:
        for command in ("plan", "load"):
            done = call_cli(command, *arguments)
            assert done.returncode == 2
            assert "pip install bitsandbytes" in done.stdout
        return
    planned, loaded = (json.loads(call_cli(command, *arguments).stdout) for command in ("plan", "load"))
    assert planned["peak_anon"] == loaded["stated"]["peak"]
    numel = 2 * 96 * 64
    assert planned["held"]["anon"] == (numel + 4 * (96 + 64) if bits == 8 else numel // 2 + numel // 64 * 4)
    assert "2 Linears are quantised" in loaded["notes"][0]
    done = call_cli("load", *arguments, f"--load-in-{12 - bits}bit")
    assert done.returncode == 2
    assert "pass one of --load-in-8bit and --load-in-4bit" in done.stdout


def test_what_the_checkpoint_lacks_counts_where_a_class_is_named(tmp_path, monkeypatch, call_cli):
    (tmp_path / "own_more.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    where = write_checkpoint(tmp_path / "w", nn.Sequential(nn.Linear(96, 64)).state_dict())
    options = [where, "--dtype", "float32", "--json"]
    held = [
        json.loads(call_cli("plan", *options, *more).stdout)["held"]["anon"]
        for more in ([], ["--model-class", "own_more:make"])
    ]
    assert held == [0, 4 * (64 * 96 + 96 + 96 * 8 + 8)]


def test_a_row_is_printed_per_device_and_one_that_does_not_fit_exits_with_1(tmp_path, call_cli):
    where = write_checkpoint(tmp_path / "w", STATE)
    done = call_cli("plan", where, "--device-map", "auto", "--max-memory", "0=20kB,1=15kB")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{where}: dtype auto, device auto" in done.stdout
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("  0 ")] == [
        ["0", "12.0", "kB", "1", "12.0", "kB", "-", "20.0", "kB"]
    ]
    done = call_cli("plan", where, "--device-map", "m.0=0,m.1=cpu", "--max-memory", "0=20kB")
    assert done.returncode == 1
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("  0 ")]
    assert row.split() == [
        "0",
        "12.0",
        "kB",
        "1",
        "12.0",
        "kB",
        "12.0",
        "kB",
        "20.0",
        "kB",
        "does",
        "not",
        "fit",
    ]
    done = call_cli("plan", where, "--device-map", "m.0=0", "--json")
    assert done.returncode == 2
    assert "nothing says where m.1" in done.stdout


def test_a_map_or_limits_that_are_none_are_usage_errors(tmp_path, call_cli):
    where = write_checkpoint(tmp_path / "w", STATE)
    for arguments, told in (
        (["--device-map", "atuo"], "pass --device-map auto"),
        (["--max-memory", "20GiB"], "is not NAME=VALUE"),
        (["--max-memory", "0=20GiB"], "pass --device-map auto"),
        (["--device-map", "auto", "--max-memory", "gpu=1GB"], "which is no device"),
    ):
        done = call_cli("plan", where, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert told in done.stderr
