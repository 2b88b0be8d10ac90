"""Four-bit floats: two in a byte, one element of torch's; equal to what safetensors and torch.load give."""

from __future__ import annotations

import pytest
import safetensors
import torch
from torch import nn

import shardload
from shardload import MismatchError, UnsupportedError
from tests.checkpoint.formats.files import safetensors as written

F4 = getattr(torch, "float4_e2m1fn_x2", None)
pytestmark = pytest.mark.skipif(F4 is None, reason="this torch has no four-bit floats")
RAW = torch.arange(48, dtype=torch.uint8)


class Holder(nn.Module):
    def __init__(self, shape=(3, 16), dtype=F4):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape, dtype=torch.uint8).view(dtype), requires_grad=False)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def stored(folder, shape=(3, 32)):
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(
        written({"w": {"dtype": "F4", "shape": list(shape), "data_offsets": [0, 48]}}, bytes(range(48)))
    )
    return path


def test_a_tensor_is_read_as_the_library_reads_it(tmp_path):
    path = stored(tmp_path / "a")
    checkpoint = shardload.open_checkpoint(path)
    with safetensors.safe_open(path, "pt") as file:
        expected = file.get_tensor("w")
        assert tuple(file.get_slice("w").get_shape()) == checkpoint.tensors["w"].shape == (3, 32)
    read = [checkpoint.read("w"), dict(checkpoint.items())["w"], dict(checkpoint.items(copy=True))["w"]]
    for tensor in read:
        assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape) == (F4, (3, 16))
        assert torch.equal(bits(tensor), bits(expected))
    assert torch.equal(bits(checkpoint.read("w", (slice(1, 3), slice(2, 4)))), bits(expected[1:3, 2:4]))


@pytest.mark.parametrize("turned", [False, True])
def test_a_pickled_tensor_is_read_as_torch_reads_it(tmp_path, turned):
    tensor = RAW.reshape(3, 16).view(F4)
    tensor = tensor.t() if turned else tensor
    torch.save({"w": tensor}, tmp_path / "model.bin")
    expected = torch.load(tmp_path / "model.bin", weights_only=True)["w"]
    checkpoint = shardload.open_checkpoint(tmp_path)
    if turned:
        with pytest.raises(UnsupportedError, match="two F4 in one element"):
            checkpoint.read("w")
    else:
        assert checkpoint.tensors["w"].shape == (3, 32)
        assert torch.equal(bits(checkpoint.read("w")), bits(expected))


@pytest.mark.parametrize("how", [{}, {"copy": True}, {"key_map": {"w": "w"}}])
def test_a_model_is_loaded_saved_and_loaded_again(tmp_path, how):
    where = stored(tmp_path / "a").parent
    model = shardload.from_pretrained(where, model_class=lambda _config: Holder(), config={}, **how)
    assert (model.w.dtype, model.w.shape) == (F4, (3, 16))
    assert bits(model.w).flatten().tolist() == list(range(48))
    shardload.save(model, tmp_path / "b")
    shardload.convert(where, tmp_path / "c", max_shard_size="1GB")
    shardload.convert(where, tmp_path / "d", key_map={"w": "v"}, dtype="float16")
    for folder, name in (("b", "w"), ("c", "w"), ("d", "v")):
        with safetensors.safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            assert torch.equal(bits(file.get_tensor(name)), bits(model.w))
            assert tuple(file.get_slice(name).get_shape()) == (3, 32)
    assert not shardload.verify(tmp_path / "b", values=True).values
    assert not shardload.diff(tmp_path / "b", tmp_path / "c", values=True).values
    with torch.no_grad():
        bits(model.w)[0, 0] ^= 0x70  # the high half of the first byte: 0 to 6
    shardload.save(model, tmp_path / "b")
    (apart,) = shardload.diff(tmp_path / "b", tmp_path / "c", values=True).values.values()
    assert (apart.different, apart.max_abs) == (1, 6.0)


@pytest.mark.parametrize("shape", [(3, 32), (3, 16)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_other_slots_do_not_take_them(tmp_path, shape, dtype):
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
    with pytest.raises(MismatchError):
        shardload.fill(model, shardload.open_checkpoint(stored(tmp_path / "a")))


def test_what_torch_can_not_hold_is_said(tmp_path):
    for number, shape in enumerate([(32, 3), (96, 1)]):
        checkpoint = shardload.open_checkpoint(stored(tmp_path / str(number), shape))
        with pytest.raises(UnsupportedError, match="two F4 in one element"):
            checkpoint.read("w")
    with pytest.raises(UnsupportedError):
        shardload.save(Holder((3, 16)), tmp_path / "out", key_map=shardload.KeyMap().transpose("w", (1, 0)))


def test_a_large_one_is_saved_whole(tmp_path):
    model = Holder((70, 1 << 20))
    shardload.save(model, tmp_path / "out")
    assert shardload.open_checkpoint(tmp_path / "out").tensors["w"].shape == (70, 2 << 20)
