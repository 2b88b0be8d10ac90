"""fp8 and fp4 with scales of blocks, rows and tensors, against a plain reading and transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shardload
from shardload.dequantise import Stored
from shardload.dequantise.fp8 import fp8_weights
from tests.dequantise.packed import folder_of, holds

BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def numbers(shape, dtype=torch.float8_e4m3fn, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 20).to(dtype)


def spread(scales, block, shape):
    """Return the scale of each number."""
    for dim in (-2, -1):
        index = torch.arange(shape[dim]) // block[dim]
        scales = scales.index_select(dim, index)
    return scales


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("shape", [(256, 128), (200, 300), (130, 96), (3, 130, 257)])
def test_blocks_of_128_whole_and_cut(tmp_path, dtype, shape):
    weight = numbers(shape, dtype)
    grid = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    scales = torch.rand(grid) + 0.1
    tensors = {"layer.weight": weight, "layer.weight_scale_inv": scales}
    holds(folder_of(tmp_path / "packed", tensors, BLOCKS), weight.float() * spread(scales, (128, 128), shape))


def test_scales_that_are_powers_of_two(tmp_path):
    weight = numbers((256, 256))
    scales = torch.tensor([[120, 121], [127, 130]], dtype=torch.uint8)
    wanted = weight.float() * spread((scales.float() - 127).exp2(), (128, 128), (256, 256))
    for name, stored in (("scale", scales.view(torch.float8_e8m0fnu)), ("weight_scale_inv", scales)):
        tensors = {"layer.weight": weight, f"layer.{name}": stored}
        holds(folder_of(tmp_path / name, tensors, BLOCKS), wanted)


def test_experts_in_fp4_have_a_scale_for_32_numbers(tmp_path):
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    picked = torch.randint(0, 16, (48, 64), generator=torch.Generator().manual_seed(2))
    packed = (picked[:, ::2] | picked[:, 1::2] << 4).to(torch.uint8).view(torch.int8)
    scales = torch.randint(120, 130, (48, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    wanted = values[picked] * (scales.float() - 127).exp2().repeat_interleave(32, 1)
    tensors = {"layer.weight": packed, "layer.scale": scales.view(torch.float8_e8m0fnu)}
    holds(folder_of(tmp_path / "packed", tensors, BLOCKS), wanted)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (48, 1), (48,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_scale_a_tensor_or_a_row(tmp_path, shape, dtype):
    weight = numbers((48, 80))
    scales = (torch.rand(shape) + 0.1).to(dtype)
    tensors = {"layer.weight": weight, "layer.weight_scale": scales, "layer.input_scale": torch.ones(())}
    wanted = (weight.float() * scales.float().reshape(-1, 1)).to(dtype)
    holds(folder_of(tmp_path / "packed", tensors, {"quant_method": "compressed-tensors"}), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bits_are_those_of_transformers(tmp_path, dtype):
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    weight, scales = numbers((256, 384)), torch.rand(2, 3) + 0.1
    folder = folder_of(
        tmp_path / "packed", {"layer.weight": weight, "layer.weight_scale_inv": scales}, BLOCKS
    )
    wanted = module.Fp8Dequantize(None)._dequantize_one(weight, scales, output_dtype=dtype)
    plain = shardload.dequantised(shardload.open_checkpoint(folder), dtype)
    assert torch.equal(plain.read("layer.weight"), wanted)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["layer.weight_scale_inv"].__setitem__((0, 1), float("nan")), "layer.weight_scale_inv"),
        (lambda t: t.__setitem__("layer.weight_scale_inv", torch.ones(2, 2)), "layer.weight_scale_inv"),
        (lambda t: t.__setitem__("layer.weight_scale_inv", torch.ones(6)), "layer.weight_scale_inv"),
        (lambda t: t.__setitem__("layer.weight_scale_inv", torch.ones(2, 3).int()), "layer.weight_scale_inv"),
    ],
)
def test_changed_scales_are_refused_by_name(tmp_path, change, named):
    tensors = {"layer.weight": numbers((256, 384)), "layer.weight_scale_inv": torch.rand(2, 3) + 0.1}
    change(tensors)
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, BLOCKS))
    with pytest.raises(shardload.CorruptError) as caught:
        dict(shardload.dequantised(checkpoint, "bfloat16").items())
    assert named in caught.value.what
    assert "model.safetensors" in caught.value.where


def test_two_sizes_of_blocks_that_fit_are_both_named(tmp_path):
    tensors = {"layer.weight": numbers((200, 128)), "layer.weight_scale_inv": torch.rand(2, 1)}
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, {"quant_method": "fp8"}))
    with pytest.raises(shardload.UnsupportedError, match="100 or 128"):
        shardload.dequantised(checkpoint, "bfloat16")


def test_a_scale_beside_a_plain_weight_is_a_tensor_like_any_other(tmp_path):
    tensors = {"layer.weight": torch.ones(4, 4), "layer.weight_scale": torch.ones(4, 1)}
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "plain", tensors, None))
    assert not list(fp8_weights(Stored(checkpoint.tensors, {}, lambda ref: b"")))


CAST = {torch.float8_e4m3fn: torch.bfloat16, torch.float8_e5m2: torch.float32}


@pytest.mark.parametrize("dtype", CAST)
def test_weights_that_were_cast_and_not_scaled_are_cast_back_as_torch_does_it(tmp_path, dtype):
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).float().nan_to_num(0.0, 1.0, -1.0).view(8, 32)
    tensors = {"layer.weight": numbers.to(dtype), "norm.weight": torch.ones(8)}
    folder = folder_of(tmp_path / "packed", tensors, None)

    def make():
        return nn.ModuleDict({"layer": nn.Linear(32, 8, bias=False), "norm": nn.LayerNorm(8, bias=False)})

    shell = shardload.build_shell(make)
    wanted = CAST[dtype]
    report = shardload.fill(shell, shardload.open_checkpoint(folder), dtype=wanted)
    assert torch.equal(shell.model["layer"].weight, tensors["layer.weight"].to(wanted))
    name = str(wanted).removeprefix("torch.")
    assert f"1 weight is stored in fp8 without scales, and cast to {name}" in report.notes
    assert report.stated.anonymous == shell.model["layer"].weight.nbytes + (
        16 if wanted is torch.bfloat16 else 0
    )
    shardload.convert(folder, tmp_path / "plain", dtype=wanted)
    again = shardload.open_checkpoint(tmp_path / "plain").read("layer.weight")
    assert torch.equal(again, tensors["layer.weight"].to(wanted))
    as_stored = shardload.build_shell(make)
    shardload.fill(as_stored, shardload.open_checkpoint(folder))
    assert as_stored.model["layer"].weight.dtype == dtype


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ({}, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
        (
            {"other.weight": torch.ones(8, 8).to(torch.float8_e4m3fn), "other.weight_scale": torch.ones(())},
            None,
        ),
    ],
)
def test_scales_that_are_missing_are_said_to_be(tmp_path, more, settings):
    folder = folder_of(
        tmp_path / "packed", {"layer.weight": torch.ones(8, 8).to(torch.float8_e4m3fn), **more}, settings
    )
    with pytest.raises(shardload.CorruptError, match="its scales are not stored") as caught:
        shardload.convert(folder, tmp_path / "plain", dtype="bfloat16")
    assert "layer.weight" in caught.value.where
    assert ("take the quantiser out of config.json" in caught.value.cure) == (settings is not None)


def test_a_scale_of_another_name_keeps_a_weight_as_it_is(tmp_path):
    """ComfyUI's scale_weight, say: what it means is not known here, and to cast the weight alone would be wrong."""
    tensors = {"layer.weight": torch.ones(8, 8).to(torch.float8_e4m3fn), "layer.scale_weight": torch.ones(())}
    folder = folder_of(tmp_path / "packed", tensors, None)
    plain = shardload.dequantised(shardload.open_checkpoint(folder), "bfloat16")
    assert plain.tensors["layer.weight"].dtype == "F8_E4M3"
