"""An adapter attached before the model is sharded trains as in one process, and is saved whole."""

from __future__ import annotations

import pytest
import torch

from shardload import UnsupportedError, attach_lora, load_adapter, open_checkpoint, save
from tests.distributed.nets import NETS
from tests.distributed.spawn import run_ranks

ONE_OF_THEM = "base_model.model.layers.0.up.lora_B.weight"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(1)
    save(NETS["Uneven"](), folder / "base")
    (folder / "base" / "config.json").write_text("{}")
    ranks = run_ranks("tests.distributed.adapters", 2, folder)
    assert [rank.code for rank in ranks] == [0, 0], "\n".join(rank.said[-3000:] for rank in ranks)
    return folder, [rank.lines[0] for rank in ranks]


def test_three_steps_on_other_data_are_those_of_the_joined_batch(ended):
    _, lines = ended
    assert all(line["same"] for line in lines)
    assert [line["far"] for line in lines] == [lines[0]["far"]] * 2
    assert lines[0]["far"] < 1e-5


def test_an_adapter_of_layers_that_are_cut_trains_as_in_one_process(ended):
    _, lines = ended
    assert all(line["cut_same"] and line["cut_far"] < 1e-5 for line in lines)


def test_torch_itself_is_told_that_a_layer_with_an_adapter_is_no_leaf():
    model = NETS["Uneven"]()
    attach_lora(model, r=2, targets=["layers.0.up"])
    layer = model.layers[0].up
    for name, parameter in list(layer.named_parameters()):
        if "lora" in name:
            with pytest.raises(UnsupportedError, match="parallelize_module can't cut"):
                layer.register_parameter(name, parameter)
        else:
            layer.register_parameter(name, parameter)
    assert not hasattr(layer.lora_A, "weight")
    with pytest.raises(UnsupportedError, match="parallelize_module can't cut"):
        _ = layer.lora_A.weight


def test_the_saved_adapter_is_that_of_one_process(ended):
    folder, lines = ended
    assert lines[0]["files"] == ["adapter_model.safetensors", "adapter_config.json"]
    saved, one = (open_checkpoint(folder / name / "adapter_model.safetensors") for name in ("saved", "one0"))
    assert saved.tensors.keys() == one.tensors.keys()
    assert all(torch.allclose(saved.read(name), one.read(name), atol=1e-5) for name in one.tensors)
    model = NETS["Uneven"]()
    load_adapter(model, folder / "saved")
    assert torch.equal(model.layers[0].up.lora_B["default"].weight, saved.read(ONE_OF_THEM))


def test_the_saved_base_is_the_base(ended):
    folder, lines = ended
    assert lines[0]["saved"] == 3
    saved, base = open_checkpoint(folder / "model"), open_checkpoint(folder / "base")
    assert saved.tensors.keys() == base.tensors.keys()
    assert all(torch.equal(saved.read(name), base.read(name)) for name in base.tensors)
