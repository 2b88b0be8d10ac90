"""bitsandbytes: its own layers write the checkpoint, and its own functions say what the weights are."""

from __future__ import annotations

import json

import pytest
import torch

import shardload
from shardload.dequantise.bitsandbytes import FourBit
from tests.dequantise.packed import folder_of, holds

SETTINGS = {"quant_method": "bitsandbytes"}
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def plain_reading(shape=(10, 96), block=64, *, nested=False, dtype=torch.float16, seed=0):
    """Return stored tensors, written by hand, and the weight that they mean."""
    generator = torch.Generator().manual_seed(seed)
    numel = shape[0] * shape[1]
    picked = torch.randint(0, 16, (numel,), generator=generator)
    count = -(-numel // block)
    told = {"quant_type": "nf4", "blocksize": block, "dtype": str(dtype)[6:], "shape": list(shape)}
    tensors = {
        "layer.weight": (picked[::2] << 4 | picked[1::2]).to(torch.uint8)[:, None],
        "layer.weight.quant_map": torch.tensor(NF4),
    }
    scales = torch.rand(count, generator=generator) + 0.1
    if nested:
        index = torch.randint(0, 256, (count,), generator=generator)
        table = torch.linspace(-1, 1, 256)
        outer = torch.rand(-(-count // 8), generator=generator) + 0.1
        told |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 0.75}
        tensors["layer.weight.absmax"] = index.to(torch.uint8)
        tensors["layer.weight.nested_absmax"] = outer
        tensors["layer.weight.nested_quant_map"] = table
        scales = table[index] * outer.repeat_interleave(8)[:count] + 0.75
    else:
        tensors["layer.weight.absmax"] = scales
    text = json.dumps(told).encode()
    tensors["layer.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    wanted = (torch.tensor(NF4)[picked] * scales.repeat_interleave(block)[:numel]).view(shape).to(dtype)
    return tensors, wanted


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(10, 96), (7, 64), (5, 50), (3, 1000)])
def test_blocks_run_on_over_rows(tmp_path, shape, nested):
    tensors, wanted = plain_reading(shape, nested=nested)
    holds(folder_of(tmp_path / "packed", tensors, SETTINGS), wanted)


def own_layer(kind, nested, dtype, shape=(48, 192)):
    """Return the state of bitsandbytes' own layer, and what it dequantises its weight to."""
    bnb = pytest.importorskip("bitsandbytes")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, quant_type=kind, compress_statistics=nested)
    layer.weight = bnb.nn.Params4bit(weight, quant_type=kind, compress_statistics=nested, requires_grad=False)
    layer.weight = layer.weight._quantize("cpu")
    own = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    state = {f"layer.{name}": tensor for name, tensor in layer.state_dict().items()}
    return state, own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_those_of_bitsandbytes(tmp_path, kind, nested, dtype):
    state, own = own_layer(kind, nested, dtype)
    holds(folder_of(tmp_path / "packed", state, SETTINGS), own.view(48, 192), tries=3)


def test_rows_of_broken_blocks_are_those_of_the_function_that_needs_no_kernel(tmp_path):
    """The kernel for CPUs of bitsandbytes 0.50 begins each row with a block, as its own quantiser does not."""
    bnb = pytest.importorskip("bitsandbytes")
    state, _ = own_layer("nf4", nested=False, dtype=torch.float32, shape=(48, 160))
    parts = (state["layer.weight"].reshape(-1), state["layer.weight.absmax"], state["layer.weight.quant_map"])
    own = bnb.backends.default.ops._dequantize_4bit_compute(*parts, 64, (48, 160), torch.float32)
    holds(folder_of(tmp_path / "packed", state, SETTINGS), own.view(48, 160), tries=3)


def test_eight_bits_are_those_of_bitsandbytes(tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    weight = torch.randn(48, 160, generator=torch.Generator().manual_seed(0)).half()
    stored, scales, _ = bnb.functional.int8_vectorwise_quant(weight)
    tensors = {
        "layer.weight": stored,
        "layer.SCB": scales,
        "layer.weight_format": torch.zeros((), dtype=torch.uint8),
    }
    own = bnb.functional.int8_vectorwise_dequant(stored, scales)
    holds(folder_of(tmp_path / "packed", tensors, SETTINGS), own)


def test_eight_bits_by_a_plain_reading(tmp_path):
    stored = torch.randint(-127, 128, (6, 8), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scales = torch.rand(6) + 0.1
    holds(
        folder_of(tmp_path / "packed", {"layer.weight": stored, "layer.SCB": scales}, SETTINGS),
        stored * scales[:, None] * (1 / 127),
    )


def change_state(tensors, **told):
    name = "layer.weight.quant_state.bitsandbytes__nf4"
    text = {**json.loads(bytes(tensors[name].tolist())), **told}
    tensors[name] = torch.tensor(list(json.dumps(text).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["layer.weight.absmax"].__setitem__(0, float("inf")), "layer.weight.absmax"),
        (lambda t: t["layer.weight.quant_map"].__setitem__(3, float("nan")), "layer.weight.quant_map"),
        (
            lambda t: t.__setitem__("layer.weight.absmax", t["layer.weight.absmax"][:-1]),
            "layer.weight.absmax",
        ),
        (lambda t: t.pop("layer.weight.quant_map"), "layer.weight.quant_map"),
        (lambda t: change_state(t, shape=[10, 97]), "quant_state"),
        (lambda t: change_state(t, shape=[-10, -96]), "quant_state"),
        (lambda t: change_state(t, blocksize=0), "quant_state"),
        (lambda t: change_state(t, dtype="int8"), "quant_state"),
        (lambda t: change_state(t, nested_blocksize=256, nested_offset=0.5), "layer.weight.absmax"),
    ],
)
def test_changed_parts_are_refused_by_name(tmp_path, change, named):
    tensors, _ = plain_reading()
    change(tensors)
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, SETTINGS))
    with pytest.raises(shardload.CorruptError) as caught:
        dict(shardload.dequantised(checkpoint, "bfloat16").items())
    assert named in caught.value.what + str(caught.value.where)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_other_values_in_the_table_beside_are_not_read_as_bitsandbytes_does_not(tmp_path, kind):
    state, own = own_layer(kind, nested=False, dtype=torch.float32)
    bnb = pytest.importorskip("bitsandbytes")
    state["layer.weight.quant_map"] += 0.25
    folder = folder_of(tmp_path / "packed", state, SETTINGS)
    stats = {
        name.removeprefix("layer.weight."): tensor for name, tensor in state.items() if name != "layer.weight"
    }
    parameter = bnb.nn.Params4bit.from_prequantized(state["layer.weight"], stats, device="cpu")
    assert torch.equal(bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state), own)
    holds(folder, own.view(48, 192), tries=2)
    options = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": kind}}
    kept = shardload.from_pretrained(folder, model_class=_one_layer, **options).layer.weight
    assert torch.equal(bnb.functional.dequantize_4bit(kept.data, kept.quant_state), own)


def _one_layer(_):
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(192, 48, bias=False)
    return model


def test_a_block_of_rows_begins_and_ends_with_a_block_of_numbers():
    scheme = FourBit("nf4", NF4, width=50, numel=5000, block=64, dtype="float16")
    assert scheme.window(range(33, 34), range(1)) == (range(32, 64), range(50))
