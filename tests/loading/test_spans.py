"""Which bytes of each shard a load reads: those of the plan, and those that headers let expect before there is one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from shardload import build_shell, open_checkpoint
from shardload.checkpoint.shard import reading_order
from shardload.loading.judge import Comparison
from shardload.loading.spans import expected_spans, spans_of
from shardload.placement.layout import Layout
from shardload.placement.sharded import sharded
from shardload.tensor_ref import Span, TensorRef
from tests.tiny import write_checkpoint


def test_the_spans_of_a_part_are_its_own_bytes_joined_where_they_touch():
    refs = [
        TensorRef("a", "F32", (2,), "m", Span(*span))
        for span in ((0, 8), (8, 16), (20, 28), (24, 32), (40, 40))
    ]
    assert spans_of(refs) == [(0, 16), (20, 32)]


class Net(nn.Module):
    """Rows that two and three ranks divide, rows that they do not, a vector, a number and a buffer of one row."""

    def __init__(self, _config: object = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 6) for _ in range(2))
        self.head = nn.Linear(6, 7)
        self.scale = nn.Parameter(torch.ones(5))


@pytest.fixture
def ranks():
    """Makes this process one rank of several; the others are not there (torch's own fake group)."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def become(rank: int, *shape: int):
        torch.distributed.init_process_group(
            "fake", store=FakeStore(), rank=rank, world_size=int(torch.tensor(shape).prod())
        )
        return init_device_mesh("cpu", shape)

    yield become
    torch.distributed.destroy_process_group()


# torch keeps the first mesh of a shape: each shape has one rank here.
@pytest.mark.parametrize(("shape", "rank"), [((2,), 1), ((3,), 0), ((4,), 3), ((2, 2), 1), ((3, 2), 2)])
def test_of_headers_a_rank_expects_the_bytes_that_its_plan_then_reads(tmp_path, ranks, shape, rank):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, Net().state_dict(), shards=2))
    layout = Layout.of(ranks(rank, *shape), None, None)
    expected = expected_spans(checkpoint, layout, "slice")

    shell = build_shell(Net)
    layout.shard(shell)
    plan = Comparison(shell, checkpoint, None, sharded(shell, None)).plan
    planned = reading_order(plan.tensors, [shard.name for shard in checkpoint.shards])
    assert expected == {name: spans_of(ref for _, ref in pairs) for name, pairs in planned.items()}
    assert 0 < sum(stop - start for each in expected.values() for start, stop in each) < checkpoint.nbytes


def test_nothing_is_expected_where_headers_do_not_say_it(tmp_path, ranks):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, Net().state_dict()))
    mesh = ranks(0, 5)
    assert expected_spans(checkpoint, Layout.of(mesh, {"head": "colwise"}, None), "slice") == {}
    assert expected_spans(checkpoint, Layout.of(mesh, None, None), "once") == {}


def test_one_process_expects_all_shards_whole(tmp_path):
    folder = write_checkpoint(tmp_path, Net().state_dict(), shards=2)
    sizes = {path.name: [(0, path.stat().st_size)] for path in folder.glob("*.safetensors")}
    assert expected_spans(open_checkpoint(folder), None, "slice") == sizes
