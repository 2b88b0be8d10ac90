"""Merges on disk of adapters for a class's own names and parts, into the checkpoint as it is published.

The oracle is PEFT: it merges into the model, whose checkpoint transformers writes and loads.
"""

from __future__ import annotations

import json

import pytest
import torch

import shardload
from shardload import UnsupportedError, inspect_adapter, merge_to_disk, open_checkpoint
from shardload.adapters.merging.change import Change
from shardload.adapters.merging.class_on_disk import ClassOnDisk
from tests.adapters.test_published import filled, llava, mixtral, qwen3_moe

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.core_model_loading")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
KINDS = {
    "other names": (llava, {"target_modules": ["q_proj", "v_proj", "fc1"]}),
    "other names, DoRA": (llava, {"target_modules": ["q_proj", "fc1"], "use_dora": True}),
    "experts apart": (qwen3_moe, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "other names, experts apart": (mixtral, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "square experts": (lambda: mixtral(32), {"target_modules": [], "target_parameters": EXPERTS}),
}


def trained(make, folder, seed=0, **settings):
    """Write an adapter as PEFT does beside transformers 5; return the weights of the model that it is merged into."""
    model = peft.get_peft_model(make(), peft.LoraConfig(r=4, lora_alpha=8, **settings))
    filled(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data *= 1 + seed
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


def far(folder, make, wanted):
    got = type(make()).from_pretrained(folder).state_dict()
    assert got.keys() == wanted.keys()
    return max(float((got[name] - wanted[name]).abs().max()) for name in wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_the_classs_names_are_merged_into_the_published_checkpoint(kind, tmp_path):
    make, settings = KINDS[kind]
    make().save_pretrained(tmp_path / "base")
    wanted = trained(make, tmp_path / "lora", **settings)
    report = merge_to_disk(tmp_path / "base", tmp_path / "lora", tmp_path / "out")
    assert (
        open_checkpoint(tmp_path / "out").tensors.keys() == open_checkpoint(tmp_path / "base").tensors.keys()
    )
    assert far(tmp_path / "out", make, wanted) < 1e-5
    changed = {row.name for row in report.tensors}
    assert changed == set(shardload.diff(tmp_path / "base", tmp_path / "out", values=True).values)
    assert inspect_adapter(tmp_path / "lora", tmp_path / "base").faults == ()


def test_several_adapters_add_up_whatever_names_they_are_for(tmp_path):
    make, settings = KINDS["other names, experts apart"]
    base = make()
    base.save_pretrained(tmp_path / "base")
    plain = base.state_dict()
    first = trained(make, tmp_path / "one", **settings)
    second = trained(make, tmp_path / "two", seed=1, target_modules=["q_proj", "o_proj"])
    merge_to_disk(tmp_path / "base", [(tmp_path / "one", 0.5), tmp_path / "two"], tmp_path / "out")
    wanted = {
        name: plain[name] + 0.5 * (first[name] - plain[name]) + second[name] - plain[name] for name in plain
    }
    assert far(tmp_path / "out", make, wanted) < 1e-5


def test_what_is_no_product_of_a_and_b_is_not_taken_apart(tmp_path):
    make, _ = KINDS["experts apart"]
    make().save_pretrained(tmp_path / "base")
    model = shardload.from_pretrained(tmp_path / "base")
    of_class = ClassOnDisk.of(open_checkpoint(tmp_path / "base"))
    replaced = {"model.layers.0.mlp.experts.down_proj": Change("", replacement=torch.zeros(1))}
    assert type(of_class.shell.model) is type(model)
    with pytest.raises(UnsupportedError, match="more than a product of A and B"):
        of_class.stored(replaced)
    with pytest.raises(UnsupportedError, match="stores in another way"):
        of_class.stored({"lm_head.bias": replaced.popitem()[1]})


def test_a_base_of_no_known_class_is_judged_by_its_headers(tmp_path):
    make, settings = KINDS["other names"]
    make().save_pretrained(tmp_path / "base")
    trained(make, tmp_path / "lora", **settings)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    for changed in (
        {"architectures": ["Nobodys"]},
        {"auto_map": {"AutoModel": "net.Net"}},
        {"hidden_act": 3, "text_config": 3},
    ):
        (tmp_path / "base" / "config.json").write_text(json.dumps(config | changed))
        assert ClassOnDisk.of(open_checkpoint(tmp_path / "base")) is None
    with pytest.raises(shardload.MismatchError, match="the model has no module"):
        merge_to_disk(tmp_path / "base", tmp_path / "lora", tmp_path / "out")
