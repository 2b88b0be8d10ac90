"""What is quantised: the options of a config, and the modules that are left alone."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

import shardload
from shardload.placement.quantisation import Quantisation, is_skipped, linears
from tests.tiny import Net

EIGHT = Quantisation.of(load_in_8bit=True)


def chosen(model, quantisation=EIGHT):
    return set(quantisation.chosen(model))


def test_options_are_read_from_objects_mappings_and_flags_alike():
    told = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
    wanted = Quantisation("nf4", compute_dtype=torch.bfloat16)
    assert Quantisation.of(told) == wanted
    assert Quantisation.of(types.SimpleNamespace(**told, quant_method="bitsandbytes")) == wanted
    assert Quantisation.of(wanted) is wanted
    assert Quantisation.of(load_in_4bit=True) == Quantisation("fp4")
    assert Quantisation.of(wanted.to_dict()) == wanted
    assert Quantisation.stored({"quantization_config": wanted.to_dict()}) in (wanted, None)
    assert Quantisation.stored({"quantization_config": {"quant_method": "gptq"}}) is None


def test_layers_that_stay_plain_are_named_just_them():
    """The name "head" would mean "0.head" too, which is quantised."""
    made = types.SimpleNamespace(Linear8bitLt=type("Eight", (nn.Linear,), {}), Linear4bit=())
    inner = nn.ModuleDict({"head": made.Linear8bitLt(2, 2), "other": nn.Linear(2, 2)})
    model = nn.ModuleDict({"0": inner, "head": nn.Linear(2, 2)})
    skip = EIGHT.as_done(model, made).skip
    assert skip == ("0.other", "^head$")
    assert [is_skipped(name, skip) for name in ("0.head", "0.other", "head")] == [False, True, True]
    assert Quantisation("int8", ("head", "other")).as_done(model, made).skip == ("head", "other")


def test_transformers_own_config_is_read_and_reads_ours():
    transformers = pytest.importorskip("transformers")
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_storage=torch.bfloat16,
        llm_int8_skip_modules=["head"],
    )  # fmt: skip
    read = Quantisation.of(config)
    assert read == Quantisation("fp4", ("head",), nested=True, storage=torch.bfloat16)
    told = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    assert transformers.BitsAndBytesConfig(**read.to_dict()).to_dict().items() >= told.items()


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, shardload.UsageError),
        ({"load_in_8bit": False}, shardload.UsageError),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, shardload.UsageError),
        ({"quant_method": "gptq"}, shardload.UnsupportedError),
        ({}, shardload.UnsupportedError),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, shardload.UnsupportedError),
    ],
)
def test_what_says_nothing_or_too_much_is_refused(config, error):
    with pytest.raises(error) as caught:
        Quantisation.of(config)
    assert caught.value.cure


def test_flags_beside_a_config_are_refused():
    with pytest.raises(shardload.UsageError, match="quantization_config"):
        Quantisation.of({"load_in_8bit": True}, load_in_8bit=True)


def test_the_output_layer_is_left_alone_and_named_modules_in_its_place():
    layers = {f"layers.{i}.{name}" for i in range(3) for name in ("up", "down")}
    assert chosen(Net()) == layers
    assert chosen(Net(), Quantisation("int8", ("layers.1", "up"))) == {
        "layers.0.down",
        "layers.2.down",
        "head",
    }
    model = Net()
    model._keep_in_fp32_modules = ["down"]
    assert chosen(model) == {name for name in layers if name.endswith("up")}
    biased = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert chosen(biased) == {"0"}


def test_tied_weights_and_other_classes_are_left_alone():
    model = Net()
    model.head.weight = model.embed.weight
    model.layers[1].up.weight = model.layers[0].up.weight
    model.other = nn.MultiheadAttention(8, 2)  # its projection is no plain Linear
    names = set(linears(model))
    assert names == {"layers.0.down", "layers.1.down", "layers.2.down", "layers.2.up"}


def test_names_are_meant_as_transformers_means_them():
    utils = pytest.importorskip("transformers.quantizers.quantizers_utils")
    names = [
        "layer.1",
        "layer.11.attn",
        "layer.1.attn",
        "mlp.gate_proj",
        "mlp.gate",
        "h.fc1",
        "lm_head",
        "a.lm_head",
    ]
    for pattern in ("layer.1", "layer.*", "mlp.gate", "fc1", "lm_head", "a|h", r"layer\.\d+\.", "gate_proj"):
        for name in names:
            assert is_skipped(name, [pattern]) is not utils.should_convert_module(name, [pattern])
    assert is_skipped("a.*b[", ["*b["])
    assert not is_skipped("ab", ["*b["])
