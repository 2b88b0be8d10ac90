"""A model under DistributedDataParallel keeps its mapped weights, and what is trained is equal on all ranks."""

from __future__ import annotations

import torch

from shardload import save
from tests.distributed.mirrored import net
from tests.distributed.spawn import run_ranks

BASE = 3 * 2048 * 2048 * 4


def test_the_pages_of_the_base_stay_those_of_the_file(tmp_path):
    torch.manual_seed(0)
    save(net(), tmp_path / "base")
    ranks = run_ranks("tests.distributed.mirrored", 2, tmp_path / "base")
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].said[-3000:]
    for rank in ranks:
        (line,) = rank.lines
        assert line["own"] == 0
        assert line["same"]
        assert "1 of 7 tensors differ" in line["refused"]
        assert any("shardload.data_parallel(model)" in note for note in line["notes"])
    assert max(line["theirs"] for rank in ranks for line in rank.lines) >= BASE  # what it is for
