"""MergedOutput: which shards stay as they are, which are written anew, and with which headers and index."""

from __future__ import annotations

import json

import pytest
import torch

from shardload import open_checkpoint
from shardload.adapters.adapter import ReadOptions
from shardload.adapters.merging.changes import changes_on_disk
from shardload.adapters.merging.merged_output import MergedOutput
from shardload.adapters.merging.workers import Workers
from shardload.where import Where
from shardload.writing import OutputShard, SameFile, read_raw_header, write_output
from tests.adapters.merging.disk import assert_holds, base_of, merged_by_hand
from tests.adapters.tiny import Tiny, lora_tensors, write

TENSORS = lora_tensors(Tiny(), ("q",))


@pytest.fixture
def plan(tmp_path):
    def make(base, **options):
        adapter = write(tmp_path / "lora", TENSORS)
        checkpoint = open_checkpoint(base)
        changes, _, _ = changes_on_disk(checkpoint, [adapter], ReadOptions(), Where(base))
        given = {"dtype": None, "rounding": "nearest", "seed": 0, "limit": None, "beside": {}} | options
        with Workers() as workers:
            planned = MergedOutput(checkpoint, changes, workers=workers, **given)
            write_output(tmp_path / "out", planned.output, keep=planned.rows_of)
            return planned

    return make


def shard_of(base, name):
    return open_checkpoint(base).tensors[name].shard


def test_shards_without_a_change_stay_and_the_others_keep_their_headers(tmp_path, plan):
    base = base_of(tmp_path / "base", torch.float16, shards=8)
    made = plan(base)
    changed = {shard_of(base, f"layers.{n}.q.weight") for n in (0, 1)}
    for shard in made.output.shards:
        assert isinstance(shard, OutputShard if shard.name in changed else SameFile)
        assert read_raw_header(tmp_path / "out" / shard.name) == read_raw_header(base / shard.name)
    index = "model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (base / index).read_bytes()
    assert_holds(tmp_path / "out", merged_by_hand(Tiny(torch.float16).state_dict(), TENSORS, 3.0))


def test_what_became_of_each_changed_tensor_is_known_by_its_shard(tmp_path, plan):
    base = base_of(tmp_path / "base", torch.float16, shards=8)
    made = plan(base)
    assert set(made.rows) == {"layers.0.q.weight", "layers.1.q.weight"}
    for name, row in made.rows.items():
        assert (row.shape, row.dtype, row.adapters) == ((8, 8), "float16", 1)
        assert 0.9 < row.share < 1.1
        assert [kept["name"] for kept in made.rows_of(shard_of(base, name))] == [name]
    same = next(shard.name for shard in made.output.shards if isinstance(shard, SameFile))
    assert made.rows_of(same) == made.rows_of("no such shard") == []


def test_another_dtype_writes_every_floating_tensor_and_a_new_index(tmp_path, plan):
    base = base_of(tmp_path / "base", torch.float16, shards=3)
    made = plan(base, dtype=torch.float32)
    assert all(isinstance(shard, OutputShard) and shard.header is None for shard in made.output.shards)
    wanted = {name: value.float() for name, value in Tiny(torch.float16).state_dict().items()}
    assert_holds(tmp_path / "out", merged_by_hand(wanted, TENSORS, 3.0))
    total = json.loads(made.output.index[1])["metadata"]["total_size"]
    assert total == sum(value.nbytes for value in wanted.values())


def test_with_a_limit_the_tensors_are_dealt_anew(tmp_path, plan):
    base = base_of(tmp_path / "base", torch.float16, shards=1)
    made = plan(base, limit=400)
    assert len(made.output.shards) > 2
    assert all(
        sum(t.nbytes for t in shard.tensors) <= 400 or len(shard.tensors) == 1 for shard in made.output.shards
    )
    assert_holds(tmp_path / "out", merged_by_hand(Tiny(torch.float16).state_dict(), TENSORS, 3.0))


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_shards_get_safetensors_names(tmp_path, plan, shards):
    base = base_of(tmp_path / "base", torch.float16, shards=shards, kind="bin")
    names = [shard.name for shard in plan(base).output.shards]
    numbered = [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    assert names == (numbered if shards == 2 else ["model.safetensors"])
    assert_holds(tmp_path / "out", merged_by_hand(Tiny(torch.float16).state_dict(), TENSORS, 3.0))


def test_it_may_not_be_written_into_its_base(tmp_path, plan):
    base = base_of(tmp_path / "base", torch.float16)
    assert plan(base).output.sources == (base,)
