"""dequantised: a quantised checkpoint as if it were stored plain, for everything that takes a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shardload
from shardload.checkpoint.plain_weights import dequantised, weights_in
from shardload.keymap.dequantised import Dequantised
from tests.dequantise.packed import Layer, folder_of, words
from tests.tiny import save_safetensors


def gptq(rows=32, columns=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 16, (columns, rows), generator=generator)
    zeros = torch.randint(1, 17, (columns // 32, rows), generator=generator)
    scales = (torch.rand(columns // 32, rows, generator=generator) + 0.01).half()
    index = torch.arange(columns) // 32
    packed = {"qweight": words(numbers, 4, 0), "qzeros": words(zeros - 1, 4, 1), "scales": scales}
    return packed, (scales[index] * (numbers - zeros[index])).t().contiguous()


SETTINGS = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.fixture
def folder(tmp_path):
    tensors = {}
    for number in range(2):
        packed, _ = gptq(seed=number)
        tensors |= {f"layers.{number}.{name}": tensor for name, tensor in packed.items()}
    tensors["norm.weight"] = torch.rand(64)
    return folder_of(tmp_path / "packed", tensors, SETTINGS, torch_dtype="float16")


class Net(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(nn.Linear(64, 32, bias=False) for _ in range(2))
        self.norm = nn.LayerNorm(64, bias=False)


def test_headers_are_those_of_a_plain_checkpoint(folder):
    checkpoint = shardload.open_checkpoint(folder)
    assert len(weights_in(checkpoint)) == 2
    plain = dequantised(checkpoint, "bfloat16")
    assert {name: (ref.dtype, ref.shape) for name, ref in plain.tensors.items()} == {
        "layers.0.weight": ("BF16", (32, 64)),
        "layers.1.weight": ("BF16", (32, 64)),
        "norm.weight": ("F32", (64,)),
    }
    assert plain.packing == "GPTQ"
    assert plain.config == {"torch_dtype": "float16"}
    assert isinstance(plain.tensors["layers.0.weight"], Dequantised)
    assert dequantised(plain, "float32") is plain


def test_a_plain_checkpoint_stays_as_it_is(tmp_path):
    shardload.save(nn.Linear(4, 2), tmp_path)
    checkpoint = shardload.open_checkpoint(tmp_path)
    assert dequantised(checkpoint, "bfloat16") is checkpoint
    with pytest.raises(shardload.UsageError, match="no dtype to dequantise to"):
        dequantised(checkpoint, "auto")


def test_a_load_needs_no_more_than_a_dtype(folder):
    model = shardload.from_pretrained(folder, model_class=Net, dtype="bfloat16")
    for number, layer in enumerate(model.layers):
        assert torch.equal(layer.weight, gptq(seed=number)[1].bfloat16())
    assert model.norm.weight.dtype == torch.bfloat16
    report = shardload.report_of(model)
    assert report.packing == "GPTQ"
    assert any(
        "2 weights are stored packed (GPTQ), and dequantised to bfloat16" in note for note in report.notes
    )
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("dtype", ["auto", "stored"])
def test_without_a_dtype_the_choices_are_said(folder, dtype):
    with pytest.raises(shardload.UnsupportedError) as caught:
        shardload.from_pretrained(folder, model_class=Net, dtype=dtype)
    assert caught.value.code == "E-QUANT"
    assert "dtype='bfloat16'" in caught.value.cure
    assert "float32" in caught.value.cure


def test_a_model_that_takes_packed_weights_gets_them(tmp_path):
    packed, _ = gptq()
    folder = folder_of(tmp_path / "packed", {f"layer.{k}": t for k, t in packed.items()}, SETTINGS)

    class Own(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.layer = nn.Module()
            for name, tensor in packed.items():
                self.layer.register_buffer(name, torch.empty_like(tensor))

    model = shardload.from_pretrained(folder, model_class=Own, dtype="float32")
    assert torch.equal(model.layer.qweight, packed["qweight"])


def test_a_key_map_names_the_plain_weights(folder):
    key_map = (
        shardload.KeyMap().cat(["layers.0.weight", "layers.1.weight"], "layer.weight").drop("norm.weight")
    )
    wanted = torch.cat([gptq(seed=number)[1] for number in range(2)])
    shell = shardload.build_shell(lambda: Layer((64, 64)))
    report = shardload.fill(shell, shardload.open_checkpoint(folder), key_map=key_map, dtype="float32")
    assert torch.equal(shell.model.layer.weight, wanted.float())
    assert report.loaded == 1


def test_every_shard_is_opened_once_and_parts_may_lie_apart(tmp_path):
    packed, wanted = gptq()
    names = list(packed)
    for number, name in enumerate(names, 1):
        save_safetensors(
            {f"layer.{name}": packed[name]}, tmp_path / f"model-{number:05}-of-00003.safetensors"
        )
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 32}')
    for copy in (False, True):
        shell = shardload.build_shell(lambda: Layer(wanted.shape))
        report = shardload.fill(shell, shardload.open_checkpoint(tmp_path), dtype="float16", copy=copy)
        assert torch.equal(shell.model.layer.weight, wanted)
        assert [row.tensors for row in report.shards] == [1, 1, 1]
        assert report.stated.peak >= report.memory.peak.anon - report.memory.before.anon


def test_the_forecast_states_what_the_load_states(folder):
    forecast = shardload.plan_load(folder, dtype="bfloat16")
    model = shardload.from_pretrained(folder, model_class=Net, dtype="bfloat16")
    stated = shardload.report_of(model).stated
    assert forecast.memory == stated
    assert forecast.held.anon == sum(p.nbytes for p in model.parameters())
    assert forecast.read == sum(ref.nbytes for ref in shardload.open_checkpoint(folder).tensors.values())


def test_a_weight_that_is_stored_twice_is_refused(tmp_path):
    packed, wanted = gptq()
    tensors = {f"layer.{name}": tensor for name, tensor in packed.items()} | {"layer.weight": wanted}
    folder = folder_of(tmp_path / "packed", tensors, SETTINGS)
    with pytest.raises(shardload.CorruptError, match="stored plain, and packed too"):
        dequantised(shardload.open_checkpoint(folder), "float32")


def test_numbers_of_a_class_of_its_own_are_not_taken_for_packed_weights(tmp_path):
    """Whole numbers and a scale beside them could be of 4 bits or of 8: the class knows, and has a place for both."""
    tensors = {"layer.weight": torch.ones(8, 8, dtype=torch.int8), "layer.weight_scale": torch.ones(8)}
    save_safetensors(tensors, tmp_path / "model.safetensors")

    class Own(nn.Module):
        def __init__(self, config=None):
            super().__init__()
            self.layer = nn.Module()
            self.layer.register_buffer("weight", torch.zeros(8, 8, dtype=torch.int8))
            self.layer.register_buffer("weight_scale", torch.zeros(8))

    model = shardload.from_pretrained(tmp_path, model_class=Own, dtype="bfloat16")
    assert torch.equal(model.layer.weight, tensors["layer.weight"])
    assert model.layer.weight_scale.dtype == torch.bfloat16
