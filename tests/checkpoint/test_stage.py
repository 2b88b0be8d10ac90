"""A part of a checkpoint: patterns with ranges, the shards that hold it, and the tie of a pipeline's last stage."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from shardload import MismatchError, NotFoundError, UsageError, build_shell, fill, open_checkpoint, save
from shardload.checkpoint.stage import Stage
from tests.distributed.nets import NETS, Block


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(516, 32)
        self.layers = nn.ModuleDict({"0": Block()})

    def forward(self, x):
        return self.layers["0"](self.embed(x))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"1": Block()})
        self.head = nn.Linear(32, 516, bias=False)

    def forward(self, x):
        return self.head(self.layers["1"](x))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save(NETS["Tied"](), tmp_path, max_shard_size="30kB")
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    return tmp_path


def test_two_stages_compute_what_the_whole_computes(folder):
    whole = build_shell(NETS["Tied"])
    fill(whole, open_checkpoint(folder))
    first, last = build_shell(First), build_shell(Last)
    fill(first, open_checkpoint(folder, only=["layers.0.*", "embed*"]))
    report = fill(last, open_checkpoint(folder, only=["layers.1-1.*", "embed*"]))
    assert any("head.weight: filled with embed.weight" in note for note in report.notes)
    x = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(last.model(first.model(x)), whole.model(x))


def test_a_tie_that_the_config_does_not_state_is_no_tie(folder):
    (folder / "config.json").write_text("{}")
    report_of = build_shell(Last)
    with pytest.raises(MismatchError, match="1 unexpected, 1 missing"):
        fill(report_of, open_checkpoint(folder, only=["layers.1.*", "embed*"]))


def test_shards_of_other_stages_are_not_opened(folder):
    stage = open_checkpoint(folder, only=["layers.1.*"])
    kept = {ref.shard for ref in stage.tensors.values()}
    for path in folder.glob("*.safetensors"):
        if path.name not in kept:
            path.unlink()
    again = open_checkpoint(folder, only=["layers.1.*"])
    assert list(again.tensors) == list(stage.tensors)
    assert len(kept) < len(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


def test_a_single_file_has_parts_too(tmp_path):
    save(NETS["Tied"](), tmp_path)
    assert sorted(open_checkpoint(tmp_path, only=["layers.0.up.*"]).tensors) == [
        "layers.0.up.bias",
        "layers.0.up.weight",
    ]


def test_a_range_is_of_whole_segments():
    stage = Stage(["layers.2-11.*", "h.[ab]-x.*", "embed?"])
    assert [number for number in range(20) if stage.holds(f"layers.{number}.w")] == list(range(2, 12))
    assert stage.holds("h.a-x.w")
    assert stage.holds("embed1")
    assert not stage.holds("embed")
    assert not stage.holds("a.layers.2.w")


def test_patterns_without_a_tensor_and_other_values_are_refused(folder):
    with pytest.raises(NotFoundError, match="'layer.0"):
        open_checkpoint(folder, only=["layers.0.*", "layer.0.*"])
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint(folder, only=["h.0-13.*"])
    assert "'embed.weight'" in caught.value.cure
    for wrong in ("layers.0.*", [], [3]):
        with pytest.raises(UsageError, match="only"):
            open_checkpoint(folder, only=wrong)
    with pytest.raises(UsageError, match="ends before"):
        open_checkpoint(folder, only=["layers.5-2.*"])
