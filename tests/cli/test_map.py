"""`shardload map`: apply shows and binds a map, invert turns it round."""

import json

import pytest
import torch

from shardload import KeyMap, open_checkpoint
from tests.tiny import write_checkpoint

STATE = {f"m.{n}.{w}": torch.ones(4, 2) for n in range(3) for w in ("gate", "x", "up")} | {
    "skip": torch.ones(1)
}
MAP = KeyMap().drop("skip").rename("m.{}.x", "layers.{}.x").cat(["m.{}.gate", "m.{}.up"], "layers.{}.gate_up")


@pytest.fixture
def where(tmp_path):
    return write_checkpoint(tmp_path / "w", STATE)


@pytest.fixture
def written(tmp_path):
    def write(key_map, name="map.json"):
        (tmp_path / name).write_text(key_map.to_json())
        return tmp_path / name

    return write


def test_apply_shows_what_becomes_of_the_tensors(where, written, call_cli):
    done = call_cli("map", "apply", written(MAP), where)
    assert (done.returncode, done.stderr) == (0, "")
    assert "10 stored tensors become 6" in done.stdout
    assert "layers.{0-2}.gate_up  [8, 2] float32  joined from 2" in done.stdout
    assert "layers.{0-2}.x  [4, 2] float32" in done.stdout
    assert "dropped: 1 (skip)" in done.stdout
    assert "taken by no rule" not in done.stdout


def test_json_says_which_stored_tensors_each_is_made_of(where, written, call_cli):
    done = call_cli("map", "apply", written(MAP), where, "--json")
    document = json.loads(done.stdout)
    assert document["schema"] == "shardload.map/1"
    assert [rule["takes"] for rule in document["rules"]] == [1, 3, 6]
    assert document["tensors"]["layers.1.gate_up"] == {
        "shape": [8, 2], "dtype": "float32", "from": ["m.1.gate", "m.1.up"]
    }  # fmt: skip
    assert (document["dropped"], document["unchanged"]) == (["skip"], [])


def test_a_bound_map_can_be_inverted_and_leads_back(where, written, tmp_path, call_cli):
    loose = written(KeyMap(MAP.rules[1:]))
    refused = call_cli("map", "invert", loose)
    assert refused.returncode == 2
    assert "a cat without sizes has no inverse" in refused.stderr
    assert "--sizes" not in refused.stderr
    done = call_cli("map", "apply", loose, where, "-o", tmp_path / "bound.json")
    assert (done.returncode, done.stderr) == (0, f"written: {tmp_path / 'bound.json'}\n")
    assert "taken by no rule: 1 (skip)" in done.stdout
    done = call_cli("map", "invert", tmp_path / "bound.json", "-o", tmp_path / "back.json")
    assert (done.returncode, done.stdout) == (0, "")
    stored = open_checkpoint(where).tensors
    there = KeyMap.read(tmp_path / "bound.json").map_headers(stored).tensors
    assert KeyMap.read(tmp_path / "back.json").map_headers(there).tensors == stored
    printed = call_cli("map", "invert", tmp_path / "bound.json")
    assert json.loads(printed.stdout) == json.loads((tmp_path / "back.json").read_text())


def test_a_map_of_another_checkpoint_is_refused(where, written, tmp_path, call_cli):
    other = write_checkpoint(tmp_path / "other", {"a": torch.ones(1)}, shards=1)
    bound = written(MAP.bind(open_checkpoint(where).tensors), "bound.json")
    assert call_cli("map", "apply", bound, where).returncode == 0
    done = call_cli("map", "apply", bound, other)
    assert (done.returncode, done.stdout) == (2, "")
    assert "another checkpoint" in done.stderr


def test_names_of_a_checkpoint_are_escaped(tmp_path, written, call_cli):
    where = write_checkpoint(tmp_path / "evil", {"a\x1b[31m": torch.ones(1)}, shards=1)
    done = call_cli("map", "apply", written(KeyMap().drop("nothing.*").rename("{...}", "x.{...}")), where)
    assert "\x1b" not in done.stdout + done.stderr
