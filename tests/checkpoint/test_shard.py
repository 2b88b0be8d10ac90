"""An open shard: views of its mapping; descriptors; and files that are cut, replaced, deleted or changed."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from shardload import CorruptError, NotFoundError, build_shell, fill, open_checkpoint
from shardload.checkpoint.shard import Shard
from shardload.keymap.derived import narrowed
from shardload.tensor_ref import Span, TensorRef
from tests.tiny import Net, random_state, run_python, write_checkpoint


def test_an_unaligned_tensor_is_copied(tmp_path):
    header = json.dumps({
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }).encode()  # fmt: skip
    values = torch.tensor([1.5, -2.0])
    from tests.tiny import tensor_bytes

    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\7" + tensor_bytes(values))
    got = open_checkpoint(tmp_path).read("b")
    assert torch.equal(got, values)
    assert got.data_ptr() % 4 == 0


def test_a_file_that_was_cut_after_it_was_opened_is_a_clean_error(tmp_path):
    folder = write_checkpoint(tmp_path, random_state(Net()), shards=1)
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 900)
    for copy in (False, True):
        with pytest.raises(CorruptError, match="ends before"):
            fill(build_shell(Net), checkpoint, copy=copy)


def test_neither_reads_nor_loads_hold_descriptors_and_reads_share_a_mapping(tmp_path):
    """Python's own mmap holds a descriptor: with one per shard, 1,024 shards reach the usual limit."""
    state = {f"{n}.weight": torch.full((2, 1), float(n)) for n in range(300)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=30))
    shell = build_shell(lambda: nn.Sequential(*(nn.Linear(1, 2, bias=False) for _ in range(300))))
    before = len(os.listdir("/proc/self/fd"))
    fill(shell, checkpoint)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    held = [checkpoint.read(name) for name in state]
    now = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(os.listdir("/proc/self/fd")) == before
    assert (len(mapped), len(now)) == (30, 60)
    assert all(torch.equal(tensor, state[name]) for name, tensor in zip(state, held, strict=True))
    del held, shell
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "unmapped with the last tensor"


def linear() -> nn.Module:
    return nn.Linear(2, 2)


LINEAR = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()))


def middle(folder):
    return sorted(folder.glob("*.safetensors"))[1]


def test_a_shard_that_is_deleted_after_it_was_opened(folder):
    checkpoint = open_checkpoint(folder)
    middle(folder).unlink()
    model = Net()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(NotFoundError, match="model-00002-of-00003"):
        fill(model, checkpoint)
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("copy_bytes", [False, True])
def test_a_shard_that_is_replaced_after_its_header_was_read_is_never_taken_for_it(folder, copy_bytes):
    """With the same name and size but other bytes, the old header would load noise."""
    checkpoint = open_checkpoint(folder)
    path = middle(folder)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[::-1])
    shell = build_shell(Net)
    with pytest.raises(CorruptError, match="changed since its header was read"):
        fill(shell, checkpoint, copy=copy_bytes)
    assert all(parameter.is_meta for parameter in shell.model.parameters())
    name = next(name for name, ref in checkpoint.tensors.items() if ref.shard == path.name)
    with pytest.raises(CorruptError, match="changed since its header was read"):
        checkpoint.read(name)


def test_read_only_files_in_a_read_only_folder(folder):
    """Permissions do not restrict root, so the mode of every open call is checked as well."""
    code = """
import os, sys
def refuse_writing(event, details):
    if event == "open" and str(details[0]).startswith(sys.argv[1]):
        assert not details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), details
import torch
sys.path.insert(0, ".")
from shardload import build_shell, fill, open_checkpoint
from tests.tiny import Net, random_state
sys.addaudithook(refuse_writing)
shell = build_shell(Net)
fill(shell, open_checkpoint(sys.argv[1]))
with torch.no_grad():
    shell.model.head.weight.add_(1)
print(torch.equal(shell.model.head.weight, random_state(Net())["head.weight"] + 1))
"""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert run_python(code, str(folder)).stdout == "True\n"
    finally:
        folder.chmod(0o755)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("copy_bytes", [False, True])
def test_the_callers_default_device_does_not_reach_the_weights(tmp_path, copy_bytes):
    write_checkpoint(tmp_path, LINEAR, shards=1)
    with torch.device("meta"):
        shell = build_shell(linear)
        fill(shell, open_checkpoint(tmp_path), copy=copy_bytes)
        part = open_checkpoint(tmp_path).read("weight", (slice(0, 1),))
    assert torch.equal(shell.model.weight, LINEAR["weight"])
    assert torch.equal(part, LINEAR["weight"][:1])


@pytest.mark.parametrize("copy", [False, True])
def test_a_tensor_is_the_file_s_bytes_in_the_stored_dtype(tmp_path, copy):
    path = tmp_path / "raw"
    path.write_bytes(bytes(range(64)))

    def ref(code, shape, start, stop, strides=None):
        return TensorRef("w", code, shape, "raw", Span(start, stop), strides)

    with Shard(path, copy=copy) as shard:
        assert shard.tensor(ref("U8", (2, 2), 4, 8)).tolist() == [[4, 5], [6, 7]]
        assert shard.tensor(ref("I16", (2,), 5, 9)).tolist() == [0x0605, 0x0807]  # not aligned
        assert shard.tensor(ref("U8", (3, 2), 0, 6, (1, 3))).tolist() == [[0, 3], [1, 4], [2, 5]]
        assert shard.tensor(ref("F64", (0, 3), 8, 8)).shape == (0, 3)
        mine = shard.tensor(ref("U8", (4,), 0, 4))
        mine.fill_(9)
        with pytest.raises(CorruptError, match="ends before 'w'"):
            shard.tensor(ref("U8", (4,), 62, 66))
    assert mine.tolist() == [9] * 4
    assert path.read_bytes() == bytes(range(64))


def test_columns_that_are_read_cost_their_own_bytes_alone(tmp_path):
    torch.manual_seed(0)
    whole = torch.randn(64, 8192)
    torch.save({"w": whole}, tmp_path / "model.bin")
    checkpoint = open_checkpoint(tmp_path / "model.bin")
    ref = checkpoint.tensors["w"]
    for start, length in ((0, 1024), (3000, 700), (8000, 192), (0, 8192), (5, 8000)):
        part = narrowed(ref, 1, start, length)
        with Shard(tmp_path / "model.bin", copy=True) as shard:
            before = read_bytes()
            got = shard.tensor(part)
            count = read_bytes() - before
        assert torch.equal(got, whole[:, start : start + length])
        if length in (700, 1024):
            assert got.is_contiguous()
            assert count < 1.1 * part.nbytes + 4096


def read_bytes() -> int:
    """Bytes that this process has read by calls, which the reading of this very number adds to."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].split()[1])
