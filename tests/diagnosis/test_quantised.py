"""Quantised checkpoints are declined by the name of what quantised them."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from torch import nn

from shardload import UnsupportedError, build_shell, fill, from_pretrained, open_checkpoint
from shardload.cli import run
from shardload.diagnosis.quantised import plain_cures
from shardload.where import Where
from tests.tiny import write_checkpoint

PACKED = {
    "AWQ": {
        "head.qweight": torch.zeros(4, 1, dtype=torch.int32),
        "head.qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "head.scales": torch.zeros(1, 4, dtype=torch.float16),
    },
    "GPTQ": {
        "head.qweight": torch.zeros(1, 4, dtype=torch.int32),
        "head.qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "head.scales": torch.zeros(1, 4, dtype=torch.float16),
        "head.g_idx": torch.zeros(4, dtype=torch.int32),
    },
    "bitsandbytes 4-bit": {
        "head.weight": torch.zeros(8, 1, dtype=torch.uint8),
        "head.weight.absmax": torch.zeros(1),
        "head.weight.quant_map": torch.zeros(16),
        "head.weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
    },
    "bitsandbytes 8-bit": {
        "head.weight": torch.zeros(4, 4, dtype=torch.int8),
        "head.SCB": torch.zeros(4),
    },
    "fp8 blocks": {
        "head.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
        "head.weight_scale_inv": torch.zeros(1, 1),
    },
    "EETQ int8": {
        "head.weight": torch.zeros(4, 4, dtype=torch.int8),
        "head.weight_scales": torch.zeros(4, dtype=torch.float16),
    },
    "HQQ": {"head.W_q": torch.zeros(2, 4, dtype=torch.uint8), "head.scale": torch.zeros(1)},
    "quanto": {
        "head.weight._data": torch.zeros(4, 4, dtype=torch.int8),
        "head.weight._scale": torch.zeros(4, 1),
    },
    "MXFP4": {
        "head.weight_blocks": torch.zeros(4, 1, 2, dtype=torch.uint8),
        "head.weight_scales": torch.zeros(4, 1, dtype=torch.uint8),
    },
    "NVFP4": {
        "head.weight": torch.zeros(4, 2, dtype=torch.uint8),
        "head.weight_scale": torch.zeros(4, 1).to(torch.float8_e4m3fn),
        "head.weight_scale_2": torch.zeros(()),
    },
    "AQLM": {
        "head.codes": torch.zeros(4, 1, 1, dtype=torch.int8),
        "head.codebooks": torch.zeros(1, 256, 1, 4),
        "head.scales": torch.zeros(4, 1, 1, 1),
    },
    "fp8 with one scale per tensor": {
        "head.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
        "head.weight_scale": torch.zeros(()),
        "head.input_scale": torch.zeros(()),
    },
    "fp8 with one scale per row": {
        "head.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn),
        "head.weight_scale": torch.zeros(4, 1),
    },
    "BitNet": {"head.weight": torch.zeros(1, 4, dtype=torch.uint8), "head.weight_scale": torch.zeros(1)},
}


class Head(nn.Module):
    def __init__(self, _config: object = None) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4, bias=False)


@pytest.mark.parametrize("name", PACKED)
def test_each_packing_is_declined_by_its_name(tmp_path, name):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, PACKED[name], shards=1))
    with pytest.raises(UnsupportedError, match=f"quantised: .*{name}"):
        fill(build_shell(Head), checkpoint)


def test_fp8_weights_that_fit_by_shape_are_declined_where_the_config_says_so(tmp_path):
    state = {"head.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}
    write_checkpoint(
        tmp_path, state, shards=1, config={"quantization_config": {"quant_method": "fbgemm_fp8"}}
    )
    with pytest.raises(UnsupportedError, match="scales are not among the keys") as caught:
        from_pretrained(tmp_path, model_class=Head)
    assert caught.value.code == "E-QUANT"
    (tmp_path / "config.json").write_text("{}")
    assert from_pretrained(tmp_path, model_class=Head).head.weight.dtype is torch.float8_e4m3fn


def test_plain_weights_are_loaded_whatever_the_config_says(tmp_path):
    state = {"head.weight": torch.eye(4)}
    write_checkpoint(
        tmp_path, state, shards=1, config={"quantization_config": {"quant_method": "bitsandbytes"}}
    )
    assert torch.equal(from_pretrained(tmp_path, model_class=Head).head.weight, torch.eye(4))


@pytest.mark.parametrize("named", ["x", 5, ["gptq"], {"bits": 4}])
def test_a_quantization_config_that_names_no_method(tmp_path, named):
    write_checkpoint(tmp_path, PACKED["GPTQ"], shards=1, config={"quantization_config": named})
    with pytest.raises(UnsupportedError, match="quantised: GPTQ;"):
        from_pretrained(tmp_path, model_class=Head)


def test_the_name_that_the_config_gives_is_told_too(tmp_path):
    config = {"quantization_config": {"quant_method": "awq"}}
    write_checkpoint(tmp_path, PACKED["AWQ"], shards=1, config=config)
    with pytest.raises(UnsupportedError, match="config.json says 'awq'"):
        from_pretrained(tmp_path, model_class=Head)


COUNTED = torch.arange(16).reshape(4, 4) - 8
READABLE = {
    "bitsandbytes 8-bit": {"head.weight": COUNTED.to(torch.int8), "head.SCB": torch.full((4,), 127.0)},
    "fp8 blocks": {"head.weight": COUNTED.to(torch.float8_e4m3fn), "head.weight_scale_inv": torch.ones(1, 1)},
}


@pytest.mark.parametrize("name", READABLE)
def test_the_printed_command_writes_the_plain_checkpoint(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "given one", READABLE[name], shards=1)
    with pytest.raises(UnsupportedError) as caught:
        fill(build_shell(Head), open_checkpoint("given one"))
    assert caught.value.cure == plain_cures(Where("given one"))
    (command,) = re.findall(r"shardload convert [^;]*", caught.value.cure)
    assert run(shlex.split(command)[1:]) == 0
    model = from_pretrained("plain", model_class=Head, config={}, progress=False)
    assert torch.equal(model.head.weight.float(), COUNTED.float())
