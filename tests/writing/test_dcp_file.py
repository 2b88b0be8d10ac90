"""Distributed checkpoints that shardload writes are what torch's own reader loads, and lie aligned."""

from __future__ import annotations

import zipfile

import pytest
import torch
from torch.distributed import checkpoint as dcp

from shardload import UsageError, build_shell, convert, diff, fill, open_checkpoint
from shardload.writing import dcp_file
from shardload.writing.output import OutputTensor

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

FLOATING = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)

STATE = {
    "a.weight": torch.arange(15.0).view(5, 3),
    "a.bias": torch.randn(3).bfloat16(),
    "turned": torch.randn(4, 6).t(),
    "scalar": torch.tensor(7),
    "none": torch.empty(0, 2),
    "flags": torch.tensor([True, False]),
    "eight": torch.randn(4).to(torch.float8_e4m3fn),
    "wide": torch.arange(3).to(torch.uint32),
    "complex": torch.randn(2, dtype=torch.complex128),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bin").mkdir()
    torch.save(STATE, tmp_path / "bin" / "model.bin")
    (tmp_path / "bin" / "config.json").write_text('{"model_type": "none"}')
    return tmp_path


def same(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(
        one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
    )


@pytest.mark.parametrize("prefix", ["", "model."])
def test_torch_loads_what_is_written(folder, prefix):
    key_map = {"{...}": f"{prefix}{{...}}"} if prefix else None
    written = convert(folder / "bin", folder / "out", format="dcp", max_shard_size=100, key_map=key_map)
    assert {path.name for path in written.files} >= {
        "config.json",
        "__0_0.distcp",
        "__1_0.distcp",
        ".metadata",
    }
    loaded = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    dcp.load({"model": loaded} if prefix else loaded, checkpoint_id=folder / "out")
    for name, tensor in STATE.items():
        same(loaded[name], tensor)


def test_it_is_read_again_as_views(folder):
    convert(folder / "bin", folder / "out", format="dcp", dtype="float16")
    checkpoint = open_checkpoint(folder / "out")
    assert all(ref.span.start % 64 == 0 for ref in checkpoint.tensors.values() if ref.numel)
    for name, tensor in checkpoint.items():
        same(
            tensor,
            STATE[name].half() if STATE[name].dtype in FLOATING else STATE[name],
        )
    again = convert(folder / "out", folder / "again", format="dcp")
    assert again.verified
    assert diff(folder / "out", folder / "again", values=True).ok


def test_a_model_over_its_weights_is_mapped(tmp_path):
    torch.save({"weight": torch.randn(512, 512)}, tmp_path / "model.bin")
    convert(tmp_path / "model.bin", tmp_path / "out", format="dcp")
    shell = build_shell(lambda: torch.nn.Linear(512, 512, bias=False))
    report = fill(shell, open_checkpoint(tmp_path / "out"))
    assert report.stated.mapped == 512 * 512 * 4


def test_each_item_is_an_archive_with_right_sums(folder):
    convert(folder / "bin", folder / "out", format="dcp")
    (file,) = (folder / "out").glob("*.distcp")
    content = file.read_bytes()
    at, found = 0, 0
    while at < len(content):
        end = content.index(b"PK\5\6", at) + 22
        end += -end % 64
        (folder / "item.zip").write_bytes(content[at:end])
        with zipfile.ZipFile(folder / "item.zip") as archive:
            assert archive.testzip() is None
        at, found = end, found + 1
    assert found == len(STATE)


def test_a_format_that_is_none_is_refused(folder):
    with pytest.raises(UsageError, match="no format to write"):
        convert(folder / "bin", folder / "out", format="npz")


def test_a_tensor_above_four_gigabytes_has_wide_sizes(tmp_path):
    huge = OutputTensor("a", "F16", (3 << 30,), lambda: iter(()))
    before = dcp_file._before(huge)
    with (tmp_path / "huge.pt").open("wb") as file:  # a hole, no disk
        file.write(before)
        file.seek(huge.nbytes, 1)
        file.write(dcp_file._after(huge, before, 0, 6))
    with zipfile.ZipFile(tmp_path / "huge.pt") as archive:
        assert archive.getinfo("archive/data/0").file_size == huge.nbytes
        assert archive.read("archive/version") == b"3\n"
    assert torch.load(tmp_path / "huge.pt", mmap=True).shape == (3 << 30,)
