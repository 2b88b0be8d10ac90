"""The demo's weights: the same by name, of a plausible scale, and read by torch and safetensors."""

from __future__ import annotations

import json
import struct
from math import sqrt

import pytest
import torch
from safetensors import safe_open

from shardload.cli.demo_repo import SIZES
from shardload.cli.demo_repo.weights import (
    RandomWeights,
    adapter_tensors,
    nbytes_of,
    write_safetensors,
    write_torch,
)

SMALL = SIZES["small"]


@pytest.fixture(scope="module")
def weights():
    return RandomWeights(SMALL)


def test_equal_names_have_equal_values_and_others_differ(weights):
    names = [name for name, shape in SMALL.shapes.items() if len(shape) == 2]
    again = RandomWeights(SMALL)
    assert all(torch.equal(weights.make(name), again.make(name)) for name in names)
    shape = SMALL.shapes[names[0]]
    assert not torch.equal(weights.normal("one", shape, 1.0), weights.normal("two", shape, 1.0))


@pytest.mark.parametrize("name", SMALL.shapes)
def test_every_tensor_has_its_shape_and_a_plausible_scale(weights, name):
    tensor, shape = weights.make(name), SMALL.shapes[name]
    assert (tensor.shape, tensor.dtype) == (shape, torch.float16)
    assert torch.isfinite(tensor).all()
    if name.endswith("inv_freq"):
        steps = torch.arange(len(tensor)) / len(tensor)
        torch.testing.assert_close(tensor.float(), 1 / 10000**steps, rtol=1e-2, atol=1e-3)
        return
    wanted = 1 / sqrt(shape[-1])
    if name.endswith("layernorm.weight"):
        assert abs(tensor.float().mean() - 1) < 0.05
        wanted = 0.1
    elif name.endswith(("word_embeddings.weight", ".bias")):
        wanted = 0.3
    elif name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        wanted /= sqrt(2 * SMALL.config["num_layers"])
    assert tensor.float().std().item() == pytest.approx(wanted, rel=0.25)


def test_rows_of_a_matrix_that_is_longer_than_the_block_differ(weights):
    long = weights.normal("long", (5000, 1000), 1.0)
    assert len({tuple(row[:8].tolist()) for row in long}) == 5000


def test_shards_are_read_by_both_libraries(tmp_path):
    tensors = {"a": torch.randn(3, 4).half(), "b": torch.randn(5), "c": torch.zeros(0, 2)}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert struct.unpack("<Q", raw[:8])[0] % 8 == 0
    write_torch(tmp_path / "x.bin", tensors)
    read = torch.load(tmp_path / "x.bin", weights_only=True)
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    assert json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["b"]["dtype"] == "F32"


def test_the_adapter_is_on_every_fused_projection(weights):
    tensors = adapter_tensors(SMALL, weights, 4)
    fused = [name for name in SMALL.shapes if name.endswith("query_key_value.weight")]
    assert len(tensors) == 2 * len(fused)
    for name in fused:
        module = "base_model.model." + name.removesuffix(".weight")
        assert tensors[f"{module}.lora_A.weight"].shape == (4, SMALL.config["hidden_size"])
        assert tensors[f"{module}.lora_B.weight"].shape == (SMALL.shapes[name][0], 4)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_bytes_are_two_a_weight(weights):
    names = list(SMALL.shapes)
    assert nbytes_of(SMALL, names) == sum(weights.make(name).nbytes for name in names)
