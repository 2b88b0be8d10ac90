"""QuantisedByTorchao: what comes out is what torchao's quantize_ makes of the whole model, and memory is as stated."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import shardload
from shardload.placement.quantised_by_torchao import QuantisedByTorchao, TorchaoQuantisation, parts_of
from tests.tiny import run_python, save_safetensors

quantization = pytest.importorskip("torchao.quantization")
MEMORY = """
import json, sys
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
import shardload
make = lambda _: nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(9)))
model = shardload.from_pretrained(sys.argv[1], model_class=make, quantization_config=Int8WeightOnlyConfig())
report = shardload.report_of(model)
now, before = report.memory, report.memory.before.anon
kept, peak = now.after.anon - before, now.peak.anon - before
print(json.dumps({"anonymous": report.stated.anonymous, "stated": report.stated.peak, "kept": kept, "peak": peak}))
"""


def two():
    return nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 8))


def configs():
    return {
        "int8": quantization.Int8WeightOnlyConfig(),
        "int8 in groups": quantization.Int8WeightOnlyConfig(granularity=quantization.PerGroup(32)),
        "float8": quantization.Float8WeightOnlyConfig(),
        "int8 inputs too": quantization.Int8DynamicActivationInt8WeightConfig(),
        "4 bits": quantization.IntxWeightOnlyConfig(torch.int4, quantization.PerGroup(32)),
    }


@pytest.mark.filterwarnings("ignore")  # torchao says what it will rename
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_quantize_on_the_whole_model(tmp_path, dtype):
    model = two()
    shardload.save(model, tmp_path)
    for name, config in configs().items():
        loaded = shardload.from_pretrained(
            tmp_path, model_class=lambda _: two(), dtype=dtype, quantization_config=config
        )
        expected = two().to(getattr(torch, dtype))
        expected.load_state_dict(model.state_dict())
        quantization.quantize_(expected, config, filter_fn=lambda module, path: path in {"0", "1"})
        for mine, theirs in zip(loaded.parameters(), expected.parameters(), strict=True):
            assert type(mine) is type(theirs)
            parts = zip(parts_of(mine.data), parts_of(theirs.data), strict=True)
            assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in parts), name
        x = torch.randn(3, 64, dtype=getattr(torch, dtype))
        assert torch.equal(loaded(x), expected(x))
        report = shardload.report_of(loaded)
        made = sum(part.nbytes for each in loaded[:2] for part in parts_of(each.weight))
        cast = 0 if dtype == "float32" else loaded[2].weight.nbytes + sum(each.bias.nbytes for each in loaded)
        assert report.stated.anonymous == made + cast
        assert (
            report.notes[-1]
            == f"2 Linears are quantised by torchao to {type(config).__name__}; left alone: 2"
        )
        with pytest.raises(shardload.UnsupportedError, match="wraps other tensors"):
            shardload.save(loaded, tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_transformers_config_is_read():
    transformers = pytest.importorskip("transformers")
    config = configs()["int8"]
    told = transformers.TorchAoConfig(config, modules_to_not_convert=["1"])
    assert TorchaoQuantisation.of(told) == TorchaoQuantisation(config, ("1",))
    assert TorchaoQuantisation.of(json.loads(json.dumps(told.to_dict()))) == TorchaoQuantisation(
        config, ("1",)
    )
    assert TorchaoQuantisation.of({"load_in_8bit": True}) is None


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_torchao_leaves_as_it_is_stays_a_view(tmp_path):
    shardload.save(two(), tmp_path)
    make = {"model_class": lambda _: nn.Sequential(nn.Linear(64, 128), nn.Identity(), nn.Identity())}
    of_groups = quantization.Int4WeightOnlyConfig()  # of 128
    config = {"quant_method": "torchao", "quant_type": of_groups, "modules_to_not_convert": []}
    loaded = shardload.from_pretrained(
        tmp_path, **make, allow_unexpected=["1.*", "2.*"], quantization_config=config
    )  # fmt: skip
    assert type(loaded[0].weight) is nn.Parameter
    assert shardload.report_of(loaded).stated.anonymous == 0
    assert shardload.report_of(loaded).notes[-1].endswith("left alone: 0")


@pytest.mark.filterwarnings("ignore")
def test_what_torchao_cannot_do_here_is_refused_before_a_weight_is_read(tmp_path):
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 8))
    save_safetensors(model.state_dict(), tmp_path / "model.safetensors")
    before = dict(model.named_parameters())
    with pytest.raises(shardload.UnsupportedError, match="can't quantise a weight of 64x128"):
        shardload.fill(
            model,
            shardload.open_checkpoint(tmp_path),
            target=QuantisedByTorchao(quantization.Int4WeightOnlyConfig()),
        )
    assert all(each is before[name] for name, each in model.named_parameters())
    # It is tried in the dtype of the load, and where a layout is not for meta, on the device: the words are torchao's.
    for layout in ("tile_packed_to_4d", "plain_int32"):
        config = quantization.Int4WeightOnlyConfig(group_size=32, int4_packing_format=layout)
        with pytest.raises(Exception) as own:
            quantization.quantize_(nn.Sequential(nn.Linear(128, 64)).bfloat16(), config)
        with pytest.raises(shardload.UnsupportedError) as caught:
            shardload.fill(
                model,
                shardload.open_checkpoint(tmp_path),
                target=QuantisedByTorchao(config, dtype=torch.bfloat16),
            )
        assert str(own.value) in caught.value.what
        assert "64x128 in torch.bfloat16" in caught.value.what
    with pytest.raises(shardload.UnsupportedError, match="FqnToConfig"):
        QuantisedByTorchao(quantization.FqnToConfig({"0": configs()["int8"]}))
    with pytest.raises(shardload.UnsupportedError, match="is no configuration of torchao"):
        QuantisedByTorchao({"load_in_8bit": True})


def test_memory_is_as_stated_in_a_fresh_process(tmp_path):
    save_safetensors(
        {f"{i}.weight": torch.randn(2048, 2048, dtype=torch.bfloat16) for i in range(9)},
        tmp_path / "model.safetensors",
    )
    told = json.loads(run_python(MEMORY, str(tmp_path)).stdout)
    made = 8 * (2048 * 2048 + 5 * 2048)
    assert told["anonymous"] == made
    assert told["kept"] <= made + 8e6
    assert told["peak"] <= told["stated"] <= made + 20 * 2048**2 + 48e6
