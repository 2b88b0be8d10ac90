"""compressed-tensors: packed whole numbers and int8, against a plain reading and the maker's own functions."""

from __future__ import annotations

import importlib

import pytest
import torch

import shardload
from shardload.dequantise.compressed_tensors import PackedInts
from tests.dequantise.packed import Layer, folder_of, holds, words

SETTINGS = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
ROWS = 64


def packed(bits=4, width=128, group=32, *, zeros=False, order=False, scales=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    groups = width // group
    half = 1 << (bits - 1)
    numbers = torch.randint(-half, half, (ROWS, width), generator=generator)
    scale = (torch.rand(ROWS, groups, generator=generator) + 0.01).to(scales)
    padded = -width * bits % 32 // bits if bits != 3 else 0
    filled = torch.cat([numbers + half, torch.zeros(ROWS, padded, dtype=torch.int64)], 1)
    tensors = {
        "layer.weight_packed": words(filled, bits, 1),
        "layer.weight_scale": scale,
        "layer.weight_shape": torch.tensor([ROWS, width]),
    }
    index = torch.arange(width) // group
    if order:
        index = index[torch.randperm(width, generator=generator)]
        tensors["layer.weight_g_idx"] = index.int()
    zero = torch.zeros(ROWS, groups, dtype=torch.int64)
    if zeros:
        zero = torch.randint(-half, half, (ROWS, groups), generator=generator)
        tensors["layer.weight_zero_point"] = words(zero + half, bits, 0)
    return tensors, (numbers - zero[:, index]).to(scales) * scale[:, index]


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_width_with_zeros_and_orders(tmp_path, bits, zeros, order):
    tensors, wanted = packed(bits, zeros=zeros, order=order)
    holds(folder_of(tmp_path / "packed", tensors, SETTINGS), wanted, tries=6)


@pytest.mark.parametrize("method", ["bitnet", "vptq"])
def test_int8_of_a_quantiser_with_another_name_is_not_read(tmp_path, method):
    numbers, scales = torch.ones(ROWS, 32, dtype=torch.int8), torch.ones(1)
    tensors = {"layer.weight": numbers, "layer.weight_scale": scales}
    folder = folder_of(tmp_path / "packed", tensors, {"quant_method": method})
    shell = shardload.build_shell(lambda: Layer((ROWS, 32)))
    with pytest.raises(shardload.UnsupportedError, match="is quantised"):
        shardload.fill(shell, shardload.open_checkpoint(folder), dtype="bfloat16")
    assert shardload.dequantised(shardload.open_checkpoint(folder), "bfloat16").packing == ""


@pytest.mark.parametrize("bits", [2, 4])
def test_words_of_short_rows_hold_numbers_of_the_bits_that_the_settings_name(tmp_path, bits):
    tensors, wanted = packed(bits, 16, 16)
    named = {"config_groups": {"group_0": {"weights": {"num_bits": bits}}}}
    holds(folder_of(tmp_path / "named", tensors, {**SETTINGS, **named}), wanted, tries=2)
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, SETTINGS))
    with pytest.raises(shardload.UnsupportedError, match=r"1 or 2|3 or 4"):
        shardload.dequantised(checkpoint, "bfloat16")


@pytest.mark.parametrize(("width", "group"), [(100, 100), (100, 50), (36, 12)])
def test_groups_that_do_not_end_with_a_word(tmp_path, width, group):
    tensors, wanted = packed(4, width, group, scales=torch.float16)
    holds(folder_of(tmp_path / "packed", tensors, SETTINGS), wanted, tries=6)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("grid", [(64, 1), (64, 4), (1,)])
def test_int8_with_a_scale_for_each_row_group_or_tensor(tmp_path, grid, zeros):
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(-128, 128, (ROWS, 80), generator=generator)
    scale = (torch.rand(grid, generator=generator) + 0.1).bfloat16()
    tensors = {"layer.weight": numbers.to(torch.int8), "layer.weight_scale": scale}
    zero = torch.zeros(grid, dtype=torch.int64)
    if zeros:
        zero = torch.randint(-20, 20, grid, generator=generator)
        tensors["layer.weight_zero_point"] = zero.to(torch.int8)
    wide = 80 // (grid[1] if len(grid) == 2 else 1)
    spread = [each.view(-1, each.shape[-1]).repeat_interleave(wide, 1) for each in (scale, zero)]
    wanted = (numbers - spread[1]).float() * spread[0].float()
    holds(folder_of(tmp_path / "packed", tensors, SETTINGS), wanted.bfloat16(), tries=6)


WAYS = {
    "4 bits": {"num_bits": 4, "strategy": "group", "group_size": 32},
    "4 bits with zeros": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    "3 bits": {"num_bits": 3, "strategy": "group", "group_size": 32},
    "8 bits a row": {"num_bits": 8, "strategy": "channel", "symmetric": False},
    "int8 a row": {"num_bits": 8, "strategy": "channel"},
    "int8 a tensor": {"num_bits": 8, "strategy": "tensor"},
    "fp8 a tensor": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    "fp8 a row": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "fp8 blocks": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 64]},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_those_of_the_package(tmp_path, way, dtype):
    package = pytest.importorskip("compressed_tensors")
    quantization = importlib.import_module("compressed_tensors.quantization")
    form = "pack-quantized" if "bits" in way else "int-quantized" if "int8" in way else "float-quantized"
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(**WAYS[way])
    )
    maker = package.compressors.BaseCompressor.get_value_from_registry(form)
    weight = torch.randn(ROWS, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    shapes = {"group": (ROWS, 4), "channel": (ROWS, 1), "tensor": (1,), "block": (2, 2)}
    shape, most = shapes[WAYS[way]["strategy"]], 448 if "fp8" in way else 1 << (WAYS[way]["num_bits"] - 1)
    scales = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 3).to(dtype) / most
    state = {"weight": weight, "weight_scale": scales}
    if not WAYS[way].get("symmetric", True):
        state["weight_zero_point"] = torch.randint(
            -4, 4, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(2)
        )
    stored = maker.compress(state, scheme)
    wanted = maker.decompress(stored, scheme)["weight"]
    tensors = {f"layer.{name}": tensor for name, tensor in stored.items()}
    groups = {"group_0": {"targets": ["Linear"], "weights": WAYS[way], "format": form}}
    told = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
    holds(folder_of(tmp_path / "packed", tensors, told), wanted, tries=3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["layer.weight_scale"].__setitem__((1, 1), float("nan")), "layer.weight_scale"),
        (lambda t: t["layer.weight_g_idx"].__setitem__(5, 4), "layer.weight_g_idx"),
        (lambda t: t["layer.weight_shape"].__setitem__(1, 4000), "layer.weight_shape"),
        (lambda t: t["layer.weight_shape"].__setitem__(0, 63), "layer.weight_shape"),
        (lambda t: t.pop("layer.weight_shape"), "layer.weight_shape"),
        (lambda t: t.__setitem__("layer.weight_scale", t["layer.weight_scale"][:-1]), "layer.weight_scale"),
        (lambda t: t.__setitem__("layer.weight_zero_point", t["layer.weight_zero_point"][:-1]), "zero_point"),
    ],
)
def test_changed_parts_are_refused_by_name(tmp_path, change, named):
    tensors, _ = packed(zeros=True, order=True)
    change(tensors)
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, SETTINGS))
    with pytest.raises(shardload.CorruptError) as caught:
        dict(shardload.dequantised(checkpoint, "bfloat16").items())
    assert named in caught.value.what + str(caught.value.where)


def test_an_order_needs_whole_rows():
    scheme = PackedInts(4, 128, 32, zeros=False, ordered=True)
    assert scheme.window(range(3, 4), range(5, 6)) == (range(3, 4), range(128))
