"""Every way to shard a model over ranks x every way to fill it x everything that loaders get wrong: see `row.py`."""

from __future__ import annotations

import os

import pytest
import torch

from shardload import open_checkpoint, save
from tests.distributed.nets import NETS
from tests.distributed.row import LAYOUTS, NO_CELLS, cells
from tests.distributed.spawn import run_ranks

# What every run of the suite has time for; `make test-ranks` sets SHARDLOAD_RANKS=all.
SLICE = ("fsdp2-2", "tp-2", "fsdp2+tp-4")
CHOSEN = LAYOUTS if os.environ.get("SHARDLOAD_RANKS") == "all" else SLICE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for name, kind in NETS.items():
        torch.manual_seed(7)
        save(kind(), folder / name, key_map=getattr(kind, "key_map", None), max_shard_size="40kB")
    return folder


@pytest.mark.parametrize("layout", CHOSEN)
def test_every_part_is_that_of_one_process(layout, folder):
    world = LAYOUTS[layout][0]
    ranks = run_ranks("tests.distributed.row", world, layout, folder)
    assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.said[-3000:] for rank in ranks)
    wrong = {
        f"rank {number}: {line['cell']}": line["said"]
        for number, rank in enumerate(ranks)
        for line in rank.lines
        if not line["said"].startswith("ok")
    }
    assert not wrong
    assert all(len(rank.lines) == len(list(cells(layout))) for rank in ranks)
    if (layout, "once") in NO_CELLS:
        return
    for net in NETS:
        stored = open_checkpoint(folder / net).nbytes
        once = [line for rank in ranks for line in rank.lines if (line["net"], line["way"]) == (net, "once")]
        assert sum(line["nbytes"] for line in once) == stored
        # Columns that are short are read with what lies between them.
        if "tp" not in layout and not hasattr(NETS[net], "key_map"):
            assert sum(line["asked"] for line in once) == stored
