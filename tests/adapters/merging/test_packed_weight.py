"""Merging into modules of bitsandbytes: dequantise, add, quantise anew; PEFT's bytes; undone to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shardload
from shardload.adapters.merging.packed_weight import PackedRows
from tests.adapters import tiny
from tests.placement.test_quantised import KINDS, same

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")  # bitsandbytes says that it casts inputs to float16
WIDE, OUT = 40, 48


class Two(nn.Module):
    """A layer of rows that are no whole blocks, and one that stays plain."""

    wide = WIDE

    def __init__(self, _=None):
        super().__init__()
        self.up = nn.Linear(self.wide, OUT)
        self.down = nn.Linear(OUT, 8)

    def forward(self, x):
        return self.down(self.up(x))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def written(folder):
    torch.manual_seed(0)
    shardload.save(Two(), folder / "plain")
    settings = tiny.config(target_modules=["up", "down"])
    tiny.write(folder / "lora", tiny.lora_tensors(Two(), names=("up", "down")), settings)
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


def loaded(folder, kind, **keywords):
    return shardload.from_pretrained(
        folder / "plain", model_class=Two, quantization_config=KINDS[kind], **keywords
    )


def plain(module):
    return PackedRows(module)[0 : module.out_features]


def delta(module):
    return (module.lora_B["default"].weight @ module.lora_A["default"].weight * 3.0).detach()


def test_rows_are_those_of_bitsandbytes(folder, kind):
    module = loaded(folder, kind).up
    if kind == "int8":
        own = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    else:
        state = module.weight.quant_state
        blocks = module.weight.data.view(torch.uint8)
        scales = state.absmax
        if state.nested:
            scales = bitsandbytes.functional.dequantize_blockwise(scales, state.state2) + state.offset
        compute = bitsandbytes.backends.default.ops._dequantize_4bit_compute
        own = compute(blocks.reshape(-1), scales, state.code, 64, (OUT, WIDE), torch.float32).view(OUT, WIDE)
    assert torch.equal(plain(module), own)
    assert torch.equal(PackedRows(module)[5:9], own[5:9])


def test_merged_is_the_sum_quantised_anew_and_is_undone(folder, kind):
    model = loaded(folder, kind, adapter=folder / "lora")
    x = torch.randn(3, WIDE)
    with torch.no_grad():
        before = model(x)  # a run moves bitsandbytes' own parts
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    base = plain(model.up)
    wanted = base + delta(model.up)
    report = shardload.merge(model, keep_copies=True)
    assert any("1 weight was dequantised, and quantised to" in line for line in report.warnings)
    row = next(row for row in report.tensors if row.name == "up.weight")
    assert row.share == pytest.approx(1, abs=0.1)
    options = {"int8": {}}.get(kind) or {"quant_type": report.warnings[0].split("quantised to ")[1][:3]}
    if kind == "int8":
        again = bitsandbytes.nn.Int8Params(wanted.clone(), requires_grad=False)._quantize("cpu")
        assert torch.equal(model.up.weight.SCB, again.SCB)
    else:
        nested = KINDS[kind].get("bnb_4bit_use_double_quant", False)
        again = bitsandbytes.nn.Params4bit(
            wanted.clone(), requires_grad=False, compress_statistics=nested, **options
        )._quantize("cpu")
        assert torch.equal(model.up.weight.quant_state.absmax, again.quant_state.absmax)
        assert model.up.weight.quant_state.dtype == torch.float32
    assert torch.equal(model.up.weight.data.view(torch.uint8).view(-1), again.data.view(torch.uint8).view(-1))
    with torch.no_grad():
        assert (model(x) - before).norm() < 0.2 * before.norm()
    shardload.save(model, folder / "merged")
    saved = shardload.open_checkpoint(folder / "merged")
    assert torch.equal(saved.read("up.weight"), model.up.weight.data)
    shardload.unmerge(model)
    same(model.state_dict(), stored)
    with torch.no_grad():
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_the_bytes_are_those_of_peft(tmp_path, kind, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(
        Two, "wide", 64
    )  # rows of whole blocks, which bitsandbytes dequantises alike on any CPU
    folder = written(tmp_path)
    ours, theirs = loaded(folder, kind, adapter=folder / "lora"), loaded(folder, kind)
    theirs.is_loaded_in_8bit, theirs.is_loaded_in_4bit = kind == "int8", kind != "int8"
    wrapped = peft.PeftModel.from_pretrained(theirs, folder / "lora")
    shardload.merge(ours, keep_copies=True)
    merged = wrapped.merge_and_unload()
    found, wanted = ours.up.state_dict(), merged.up.state_dict()
    for name in ("weight", "SCB", "weight.absmax"):
        if name in wanted:
            assert torch.equal(found[name], wanted[name]), name


def test_what_can_not_be_quantised_as_it_was_is_refused_by_name(folder):
    model = loaded(folder, "nf4", adapter=folder / "lora")
    model.up.weight.quant_state.blocksize = 128
    with pytest.raises(shardload.UnsupportedError, match="blocks of 128 numbers"):
        shardload.merge(model)
    model.up.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(shardload.UnsupportedError, match="at their first run"):
        shardload.merge(model)


def test_a_merge_that_fails_leaves_the_packed_weights(folder, kind):
    model = loaded(folder, kind, adapter=folder / "lora")
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model.up.weight
    with torch.no_grad():
        model.down.lora_B["default"].weight.fill_(float("inf"))
    with pytest.raises(shardload.CorruptError):
        shardload.merge(model, keep_copies=True)
    assert model.up.weight is weight
    stored["down.lora_B.default.weight"] = torch.full((8, 2), float("inf"))
    same(model.state_dict(), stored)
