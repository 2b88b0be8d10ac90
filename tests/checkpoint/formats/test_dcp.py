"""Distributed checkpoints of torch: every tensor is what torch's own reader gives, and nothing is unpickled."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp

from shardload import (
    CorruptError,
    NotFoundError,
    UnsupportedError,
    build_shell,
    convert,
    diff,
    fill,
    open_checkpoint,
    save,
)
from shardload.checkpoint.formats.dcp import DcpFolder
from shardload.checkpoint.items import in_one_piece
from shardload.checkpoint.place import place_of_opened
from shardload.keymap.derived import Joined
from tests.distributed.spawn import ROOT, run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


@pytest.fixture(scope="module")
def by_four(tmp_path_factory):
    pytest.importorskip("numpy", reason="torch saves over ranks through NumPy")
    folder = tmp_path_factory.mktemp("dcp")
    ranks = run_ranks("tests.distributed.dcp", 4, folder / "saved")
    assert [rank.code for rank in ranks] == [0] * 4, ranks[0].said[-3000:]
    return folder, [rank.lines[0] for rank in ranks]


@pytest.fixture(scope="module")
def over_ranks(by_four):
    return by_four[0]


def test_ranks_that_cut_a_model_in_another_way_read_their_parts(by_four):
    _, lines = by_four
    assert [line["wrong"] for line in lines] == [[]] * 4
    assert sum(line["read"] for line in lines) == lines[0]["stored"]


def test_pieces_of_ranks_are_joined_and_nothing_else_is_read(over_ranks):
    whole = torch.load(over_ranks / "whole.pt")
    checkpoint = open_checkpoint(over_ranks / "saved")
    assert checkpoint.format == DcpFolder.format
    assert {"grid", "rows", "net.embed.weight"} <= checkpoint.tensors.keys() == whole.keys()
    assert isinstance(checkpoint.tensors["grid"], Joined)
    for name, tensor in checkpoint.items():
        assert torch.equal(tensor, whole[name]), name
    for name, tensor in checkpoint.items(copy=True):
        assert torch.equal(tensor, whole[name]), name
    region = (slice(2, 6), slice(1, 5, 2))
    assert torch.equal(checkpoint.read("grid", region), whole["grid"][region])
    assert checkpoint.read("grid", (slice(3, 3),)).shape == (0, 5)
    assert any("left aside: step, app.optim" in warning for warning in checkpoint.warnings)


def test_torch_reads_the_same(over_ranks):
    whole = torch.load(over_ranks / "whole.pt")
    state = {"app": {"model": {name: torch.empty_like(tensor) for name, tensor in whole.items()}}}
    dcp.load(state, checkpoint_id=over_ranks / "saved")
    checkpoint = open_checkpoint(over_ranks / "saved", state_dict="app.model")
    for name, tensor in state["app"]["model"].items():
        assert torch.equal(checkpoint.read(name), tensor), name


def test_pieces_are_filled_and_converted_and_compared(over_ranks, tmp_path):
    from tests.distributed.nets import NETS

    checkpoint = open_checkpoint(over_ranks / "saved", only=["net.*"])
    shell = build_shell(NETS["Uneven"])
    fill(shell, checkpoint, key_map={"net.{...}": "{...}"})
    whole = torch.load(over_ranks / "whole.pt")
    for name, tensor in shell.model.state_dict().items():
        assert torch.equal(tensor, whole[f"net.{name}"]), name
    convert(over_ranks / "saved", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert diff(over_ranks / "saved", tmp_path / "out", values=True).ok
    with pytest.raises(UnsupportedError, match="in several pieces") as caught:
        in_one_piece(checkpoint.tensors, place_of_opened(checkpoint))
    typed = shlex.split(caught.value.cure.removeprefix("join them first: "))
    assert typed[0] == "shardload"
    subprocess.run(
        [sys.executable, "-m", *typed], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    joined = open_checkpoint(tmp_path / "joined")
    assert in_one_piece(joined.tensors, place_of_opened(joined)).keys() == whole.keys()


@pytest.mark.parametrize("shape", ["flat", "model", "module in model"])
def test_what_one_process_saved(tmp_path, shape):
    state = {
        **net().state_dict(),
        "half": torch.ones(3, 2).bfloat16().t(),
        "small": torch.ones(2).to(torch.float8_e4m3fn),
    }
    state |= {"none": torch.empty(0, 3), "scalar": torch.tensor(2.5), "long": torch.arange(3)}
    saved = {
        "flat": state,
        "model": {"model": state, "step": 1},
        "module in model": {"model": {"module": state}},
    }
    dcp.save(saved[shape], checkpoint_id=tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == state.keys()
    for name, tensor in checkpoint.items():
        assert (tensor.dtype, tensor.shape) == (state[name].dtype, state[name].shape)
        assert torch.equal(tensor.float(), state[name].float()), name


def test_a_model_is_filled_and_what_lies_beside_is_named(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = {**model.state_dict(), "optimizer": optimizer.state_dict(), "train_state": {"step": 3}}
    state |= {"0._extra_state": {"scales": [1, 2]}, "2._extra_state": "seven"}
    dcp.save(state, checkpoint_id=tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.objects == {"0._extra_state": {"scales": [1, 2]}, "2._extra_state": "seven"}
    assert any("left aside: optimizer, train_state" in warning for warning in checkpoint.warnings)
    shell = build_shell(net)
    fill(shell, checkpoint, allow_unexpected=["*_extra_state"])
    for name, tensor in shell.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_file_of_it_stands_for_the_folder(tmp_path):
    dcp.save(net().state_dict(), checkpoint_id=tmp_path)
    for name in (".metadata", "__0_0.distcp"):
        assert len(open_checkpoint(tmp_path / name).tensors) == 9


def test_a_part_of_it_opens_only_its_files(tmp_path):
    writer = dcp.FileSystemWriter(tmp_path, thread_count=2, single_file_per_rank=False)
    dcp.save(net().state_dict(), storage_writer=writer)
    assert len(open_checkpoint(tmp_path, only=["0.weight"]).shards) == 1
    with pytest.raises(NotFoundError, match="the checkpoint has no tensor '3"):
        open_checkpoint(tmp_path, only=["3.*"])


def test_folders_of_accelerate_are_named(tmp_path):
    dcp.save({"model": net().state_dict()}, checkpoint_id=tmp_path / "pytorch_model_fsdp_0")
    dcp.save({"optimizer": {"x": torch.ones(2)}}, checkpoint_id=tmp_path / "optimizer_0")
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value.cure).endswith(f"pass the path of one: {tmp_path / 'pytorch_model_fsdp_0'}")


def test_a_list_or_a_file_that_is_absent_or_cut_is_named(tmp_path):
    dcp.save(net().state_dict(), checkpoint_id=tmp_path)
    (file,) = tmp_path.glob("*.distcp")
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(CorruptError, match=r"__0_0\.distcp ends before"):
        open_checkpoint(tmp_path)
    file.write_bytes(content[:2000] + b"\0" * 200 + content[2200:])
    with pytest.raises(CorruptError):
        open_checkpoint(tmp_path)
    file.rename(tmp_path / "other.distcp")
    with pytest.raises(NotFoundError, match="1 of 1 shards are missing"):
        open_checkpoint(tmp_path)
    listed = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(listed[: len(listed) // 2])
    with pytest.raises(CorruptError, match="ends in the middle"):
        open_checkpoint(tmp_path)
    (tmp_path / ".metadata").unlink()
    with pytest.raises(NotFoundError, match="without its list of tensors"):
        open_checkpoint(tmp_path)


def test_headers_are_read_without_torch(tmp_path):
    save(net(), tmp_path / "plain")  # imports what saving needs before the probe
    dcp.save(net().state_dict(), checkpoint_id=tmp_path / "dcp")
    code = f"import sys, shardload; shardload.open_checkpoint({str(tmp_path / 'dcp')!r}); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
