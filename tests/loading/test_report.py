"""A report covers the whole load, and prints names of any kind."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from shardload import KeyMap, MismatchError, build_shell, fill, from_pretrained, open_checkpoint, report_of
from shardload.loading.report import Report, ShardRow
from tests.configured import SIZES, Configured
from tests.tiny import Net, random_state, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()), config=SIZES)


def test_the_report_tells_the_whole_load(folder):
    report = report_of(from_pretrained(folder, model_class=Configured))
    assert report.ok
    assert report.where == str(folder)
    assert report.format == "safetensors"
    assert report.class_name == "Configured"
    assert report.config_from.startswith("config.json")
    assert "Configured" in report.class_from
    assert set(report.seconds) == {"open", "shell", "plan", "fill"}
    assert report.loaded == len(random_state(Net()))
    assert [row.name for row in report.shards] == sorted(path.name for path in folder.glob("*.safetensors"))
    document = json.loads(json.dumps(report.to_dict()))
    assert document["seconds"].keys() == report.seconds.keys()
    for text in ("Configured", "model-00001-of-00003.safetensors", "anonymous"):
        assert text in str(report)


def linear() -> nn.Module:
    return nn.Linear(2, 2)


LINEAR = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}


KEYS = [
    "a..b", "", "{}", "a.{}.0", "{...}", "{0}", "new\nline", "tab\t", "\x1b[31mred", "ünïcode.日本", "\u202etxt.exe",
    ".", "a.", ".a", "0", "00.1", " a", "a/b", "../x", "%s", "x" * 3000, "9" * 5000, "a." + "9" * 5000 + ".b", "*",
    "[a]",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key)[1:20])
def test_a_key_of_any_kind_is_named_and_harms_nothing(tmp_path, key, kind):
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path, {**LINEAR, key: torch.zeros(1)}, kind=kind, shards=1)
    )
    assert set(checkpoint.tensors) == {*LINEAR, key}
    with pytest.raises(MismatchError, match="1 unexpected") as caught:
        fill(build_shell(linear), checkpoint)
    (fault,) = caught.value.report.faults
    assert fault.key == key
    text = str(caught.value)
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.splitlines()) == 6, "a name never makes a line of its own"
    assert str(caught.value.report).replace("\n", "").isprintable()
    fill(build_shell(linear), checkpoint, key_map=without(key))


def without(key: str) -> KeyMap:
    """Return a map that drops exactly this key."""
    return KeyMap().drop("".join(f"[{c}]" if c in "*?[" else c for c in key))


def test_a_report_without_faults_is_ok_and_json():
    report = Report(
        "here\x1b",
        class_name="Net",
        config_from="file\r",
        shards=[ShardRow("s\u202e", 2, 30, 0.5, 10, 20)],
        loaded=2,
        nbytes=30,
    )
    assert report.ok
    document = json.loads(json.dumps(report.to_dict()))
    assert document["shards"] == [
        {"name": "s\u202e", "tensors": 2, "nbytes": 30, "seconds": 0.5, "anon_bytes": 10, "file_bytes": 20}
    ]
    assert "2 tensors" in str(report)
    assert all(line.isprintable() for line in str(report).split("\n")), "a name harms no terminal"
    assert all(name in str(report) for name in (r"here\x1b", r"file\r", r"s\u202e"))
