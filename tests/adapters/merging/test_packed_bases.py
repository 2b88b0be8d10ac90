"""Merging into packed bases: the plain weight and the delta, rounded once; on disk, and while a model is loaded."""

from __future__ import annotations

import json

import pytest
import torch

import shardload
from shardload.adapters.merging import change as change_module
from tests.adapters import tiny
from tests.checkpoint.test_gguf_table import written
from tests.dequantise import test_awq as awq
from tests.dequantise import test_bitsandbytes as bitsandbytes
from tests.dequantise import test_compressed_tensors as compressed
from tests.dequantise import test_fp8 as fp8
from tests.dequantise import test_gptq as gptq
from tests.dequantise.packed import Layer, folder_of


def blocks_of_fp8():
    weight, scales = fp8.numbers((130, 200)), torch.rand(2, 2) + 0.1
    wanted = weight.float() * fp8.spread(scales, (128, 128), weight.shape)
    return {"layer.weight": weight, "layer.weight_scale_inv": scales}, wanted


def int8():
    stored = torch.randint(-127, 128, (48, 40), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scales = torch.rand(48) + 0.1
    return {"layer.weight": stored, "layer.SCB": scales}, stored * scales[:, None] * (1 / 127)


PACKED = {
    "GPTQ with an order": (lambda: gptq.packed(order="shuffled"), gptq.settings()),
    "AWQ": (awq.packed, awq.SETTINGS),
    "fp8": (blocks_of_fp8, fp8.BLOCKS),
    "nf4": (lambda: bitsandbytes.plain_reading(nested=True), bitsandbytes.SETTINGS),
    "int8": (int8, bitsandbytes.SETTINGS),
    "compressed-tensors": (lambda: compressed.packed(zeros=True), compressed.SETTINGS),
}


class Model(Layer):
    """A Linear of a given shape, and one that is stored plain."""

    def __init__(self, shape):
        super().__init__(shape)
        self.layer = torch.nn.Linear(shape[1], shape[0], bias=False)
        self.other = torch.nn.Linear(4, 3)


@pytest.fixture(params=PACKED)
def case(request, tmp_path):
    """A packed base with a plain layer beside it, its plain weights, and an adapter of both layers."""
    make, settings = PACKED[request.param]
    tensors, weight = make()
    model = Model(weight.shape)
    other = {name: value.half() for name, value in model.other.state_dict(prefix="other.").items()}
    base = folder_of(tmp_path / "base", {**tensors, **other}, settings, torch_dtype="float16")
    factors = tiny.lora_tensors(model, names=("layer", "other"))
    adapter = tiny.write(tmp_path / "lora", factors)
    return base, {"layer.weight": weight, **other}, factors, adapter


def merged(plain, factors, dtype):
    """The formula: one product, one sum in fp32, one rounding."""
    result = {name: value.to(dtype) for name, value in plain.items()}
    for name in ("layer.weight", "other.weight"):
        a, b = (factors[f"{tiny.PREFIX}{name[:-6]}lora_{part}.weight"] for part in "AB")
        result[name] = (plain[name].float() + torch.mm(b, a) * 3.0).to(dtype)
    return result


@pytest.mark.parametrize("options", [{}, {"max_shard_size": 2000}], ids=["shards", "dealt"])
def test_on_disk_the_result_is_plain(case, tmp_path, options, monkeypatch):
    monkeypatch.setattr(change_module, "BLOCK", 1024)  # several blocks of rows
    base, plain, factors, adapter = case
    for dtype in (torch.float32, torch.bfloat16):
        out = tmp_path / str(dtype)
        report = shardload.merge_to_disk(base, adapter, out, dtype=dtype, **options)
        found = dict(shardload.open_checkpoint(out).items(copy=True))
        wanted = merged(plain, factors, dtype)
        assert found.keys() == wanted.keys()
        assert all(found[name].dtype == dtype for name in wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert json.loads((out / "config.json").read_text()) == {"torch_dtype": str(dtype)[6:]}
        assert sorted(row.name for row in report.tensors) == ["layer.weight", "other.weight"]


def test_without_a_dtype_it_is_refused_with_what_to_pass(case, tmp_path):
    base, _, _, adapter = case
    with pytest.raises(shardload.UnsupportedError, match="quantised") as caught:
        shardload.merge_to_disk(base, adapter, tmp_path / "out")
    assert "dtype='bfloat16'" in caught.value.cure
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_while_it_is_loaded_it_is_rounded_once(case, dtype, copy):
    base, plain, factors, adapter = case
    model = shardload.from_pretrained(
        base,
        model_class=lambda _: Model(plain["layer.weight"].shape),
        dtype=dtype,
        adapter=adapter,
        merge=True,
        copy=copy,
    )
    for name, value in merged(plain, factors, dtype).items():
        assert torch.equal(model.state_dict()[name], value), name
    report = shardload.report_of(model)
    assert report.packing
    assert report.adapters[0].merged


def test_a_gguf_file_whose_rows_are_put_back_into_their_order(tmp_path):
    path, model, _ = written(tmp_path, "llama", kind="Q8_0")
    adapter = tiny.write(tmp_path / "lora", tiny.lora_tensors(model, names=("q_proj", "up_proj")))
    shardload.convert(path, tmp_path / "plain", dtype="float32")
    shardload.merge_to_disk(tmp_path / "plain", adapter, tmp_path / "wanted")
    shardload.merge_to_disk(path, adapter, tmp_path / "out", dtype="float32")
    wanted = shardload.from_pretrained(tmp_path / "wanted").state_dict()
    found = shardload.from_pretrained(tmp_path / "out").state_dict()
    at_load = shardload.from_pretrained(path, dtype="float32", adapter=adapter, merge=True).state_dict()
    assert found.keys() == wanted.keys() == at_load.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(torch.equal(at_load[name], wanted[name]) for name in wanted)
