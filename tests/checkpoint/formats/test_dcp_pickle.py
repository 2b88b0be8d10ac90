"""The pickle of a distributed checkpoint's list: nothing that it names is run, and whatever it holds ends typed."""

from __future__ import annotations

import pickle
import random

import pytest
import torch
from torch.distributed import checkpoint as dcp

from shardload import ShardloadError, UnsafeError, open_checkpoint
from shardload.checkpoint.formats.dcp_pickle import DcpPickle, Record

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


class _Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_that_a_list_names_is_run(tmp_path, capsys, protocol):
    dcp.save({"a": torch.ones(2)}, checkpoint_id=tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": _Evil()}, protocol=protocol))
    with pytest.raises(UnsafeError, match="nothing was run"):
        open_checkpoint(tmp_path)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_that_of_pickle(protocol):
    data = {
        "text": "é" * 300,
        "long": "x" * 5000,
        "bytes": b"12",
        "many": [None, True, 2**40, -1, 1.5, (1, (2,))],
    }
    data["many"] += [bytearray(b"ab")] if protocol == 5 else []
    if protocol == 2:
        del data["bytes"]  # pickled as a call
    assert DcpPickle(pickle.dumps(data, protocol=protocol), "here").load() == data


def test_objects_of_torch_are_records():
    made = DcpPickle(pickle.dumps(dcp.metadata.MetadataIndex("a", [1, 2], 3)), "here").load()
    assert type(made) is Record
    assert made.kind == "torch.distributed.checkpoint.metadata.MetadataIndex"
    assert (made.get("fqn"), made.get("offset"), made.get("index"), made.get("none")) == (
        "a",
        (1, 2),
        3,
        None,
    )


def test_broken_lists_end_typed(tmp_path):
    state = {"model": {"a": torch.ones(3, 2), "b": torch.ones(2)}, "optim": {"c": torch.ones(1)}, "step": 3}
    dcp.save(state, checkpoint_id=tmp_path)
    right = (tmp_path / ".metadata").read_bytes()
    rng = random.Random(5)
    ends = {"read": 0, "refused": 0}
    for _ in range(400):
        raw = bytearray(right)
        for _ in range(rng.choice([1, 1, 2, 8])):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        (tmp_path / ".metadata").write_bytes(raw[: rng.choice([len(raw), len(raw), rng.randrange(len(raw))])])
        try:
            open_checkpoint(tmp_path)
            ends["read"] += 1
        except ShardloadError:
            ends["refused"] += 1
    assert min(ends.values()) > 10, ends
