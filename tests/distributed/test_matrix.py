"""Every way to shard a model over ranks x every way to fill it x everything that loaders get wrong: see `row.py`."""

from __future__ import annotations

import json
import os
from itertools import product

import pytest
import torch

from shardload import build_shell, open_checkpoint, plan_load, save
from tests.distributed.nets import NETS
from tests.distributed.row import LAYOUTS, NO_CELLS, cells
from tests.distributed.spawn import run_ranks

# What every run of the suite has time for; `make test-ranks` sets SHARDLOAD_RANKS=all.
SLICE = ("fsdp2-2", "tp-2", "pipeline-2", "fsdp2+tp-4", "pipeline+fsdp2-4")
CHOSEN = tuple(LAYOUTS) if os.environ.get("SHARDLOAD_RANKS") == "all" else SLICE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for name, kind in NETS.items():
        torch.manual_seed(7)
        save(kind(), folder / name, key_map=getattr(kind, "key_map", None), max_shard_size="40kB")
        config = {"tie_word_embeddings": name != "Uneven"}
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=sorted({LAYOUTS[layout][0] for layout in CHOSEN}))
def rows(request, folder):
    """The lines of each rank, by layout: all layouts of as many ranks are rows of the same processes."""
    world = request.param
    layouts = [layout for layout in CHOSEN if LAYOUTS[layout][0] == world]
    ranks = run_ranks("tests.distributed.row", world, ",".join(layouts), folder, timeout=1200)
    assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.said[-3000:] for rank in ranks)
    return {
        layout: [[line for line in rank.lines if line["layout"] == layout] for rank in ranks]
        for layout in layouts
    }


def test_every_part_is_that_of_one_process(rows):
    for layout, ranks in rows.items():
        wrong = {
            f"{layout}, rank {number}: {line['cell']}": line["said"]
            for number, lines in enumerate(ranks)
            for line in lines
            if line["said"] != "ok"
        }
        assert not wrong
        assert all(len(lines) == len(list(cells(layout))) for lines in ranks)


def test_read_once_asks_for_each_byte_once(rows, folder):
    for layout, ranks in rows.items():
        stages = layout.startswith("pipeline")  # which read the embedding twice
        for net in NETS if (layout, "once") not in NO_CELLS and not stages else ():
            stored = open_checkpoint(folder / net).nbytes
            once = [line for lines in ranks for line in lines if (line["net"], line["way"]) == (net, "once")]
            assert sum(line["nbytes"] for line in once) == stored
            # Columns that are short are read with what lies between them.
            if "tp" not in layout and not hasattr(NETS[net], "key_map"):
                assert sum(line["asked"] for line in once) == stored


def test_what_is_stated_before_is_what_plan_states_and_what_is_held(rows, folder):
    """FSDP pads rows that no number of ranks divides, and dimensions that are shorter than the ranks are many."""
    plan = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}
    sizes = {"fsdp2-2": (2, 1), "fsdp2-4": (4, 1), "tp-2": (1, 2), "tp-4": (1, 4), "fsdp2+tp-4": (2, 2)}
    ways = {"mapped": {}, "bf16": {"dtype": "bfloat16"}, "copy": {"copy": True}}
    for layout in sizes.keys() & rows.keys():
        fsdp, tp = sizes[layout]
        for net, (way, given) in product(("Tied", "Uneven", "Experts", "Fused"), ways.items()):
            planned = plan_load(
                folder / net, fsdp=fsdp, tp=tp, tp_plan=plan if tp > 1 else None, **given
            ).ranks
            for rank, lines in zip(planned, rows[layout], strict=True):
                (line,) = [line for line in lines if (line["net"], line["way"]) == (net, way)]
                stated, cell = line["stated"], (layout, net, way, rank)
                assert stated["anonymous"] == rank.anon, cell
                assert stated["mapped"] == rank.file, cell
                assert abs(stated["anonymous"] + stated["staging"] - rank.peak) < 100_000, cell
                if way == "bf16":
                    assert line["held"] == rank.anon, cell


def test_the_stages_of_a_pipeline_make_a_whole(rows):
    for layout, ranks in rows.items():
        if layout.startswith("pipeline"):
            half = len(ranks) // 2
            for first, last in zip(ranks[0], ranks[half], strict=True):
                assert not set(first["names"]) & set(last["names"])
                names = {*first["names"], *last["names"]}
                assert names == set(build_shell(NETS[first["net"]]).model.state_dict())
