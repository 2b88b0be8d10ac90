"""Decoding: no more memory than the result, a few MB and, with copies, the packed parts of one weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shardload
from shardload.keymap.decoding import WORK_SPACE, Decoding
from shardload.keymap.dequantised import Dequantised
from tests.keymap.test_dequantised import made
from tests.tiny import run_python

LOAD = """
import json, sys, torch
from torch import nn
import shardload

class Net(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2048, 4096, bias=False) for _ in range(6))

options = json.loads(sys.argv[2])
warm = shardload.fill(Net(), shardload.open_checkpoint(sys.argv[1]), dtype="bfloat16")
shell = shardload.build_shell(Net)
del warm
report = shardload.fill(shell, shardload.open_checkpoint(sys.argv[1]), dtype="bfloat16", **options)
memory = report.memory
print(json.dumps([memory.peak.anon - memory.before.anon, report.stated.anonymous, report.stated.peak]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("packed")
    tensors = {}
    for number in range(6):
        tensors[f"layers.{number}.weight"] = torch.ones(4096, 2048).to(torch.float8_e4m3fn)
        tensors[f"layers.{number}.weight_scale_inv"] = torch.full((32, 16), number + 1.0)
    torch.save(tensors, where / "pytorch_model.bin")
    return where


@pytest.mark.parametrize("copy", [False, True])
def test_the_peak_is_the_result_and_one_weight(folder, copy):
    import json

    found = run_python(LOAD, str(folder), json.dumps({"copy": copy})).stdout
    peak, result, stated = json.loads(found.splitlines()[-1])
    assert result == 6 * 4096 * 2048 * 2
    assert peak <= stated
    assert peak <= result + WORK_SPACE + (4096 * 2048 + 2**21 if copy else 0) + 2**23


def test_a_tensor_is_decoded_with_its_last_part():
    tensor, values = made()
    assert isinstance(tensor, Dequantised)
    place = torch.zeros(tensor.shape)
    decoding = Decoding(tensor, place)
    (ref,) = tensor.stored.values()
    assert decoding.take(ref, values) == (ref,)
    assert torch.equal(place.flatten(), 2 * values.flatten())


def test_a_fault_in_a_part_names_file_and_key(tmp_path):
    tensors = {
        "w.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "w.weight_scale": torch.tensor(float("nan")),
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(shardload.CorruptError) as caught:
        shardload.dequantised(shardload.open_checkpoint(tmp_path), "float16").read("w.weight")
    assert "pytorch_model.bin: w.weight_scale" in caught.value.where


def test_weights_of_a_model_lie_in_memory_of_their_own(folder):
    shell = shardload.build_shell(
        lambda: nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2048, 4096, bias=False) for _ in range(6))})
    )
    shardload.fill(shell, shardload.open_checkpoint(folder), dtype="bfloat16")
    for number, layer in enumerate(shell.model["layers"]):
        assert bool((layer.weight == number + 1).all())
        assert layer.weight.is_contiguous()
