"""Shared tensors that a class does not tie again are written under each name; the oracle is transformers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import shardload

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.arange(14).view(2, 7)


def llama(**changes):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **changes)).eval()


def comes_back(model, folder):
    """Whether the saved model gives the same logits, loaded by transformers and by shardload."""
    with torch.no_grad():
        wanted = model(TOKENS).logits
        for again in (type(model).from_pretrained(folder), shardload.from_pretrained(folder)):
            assert torch.equal(again.eval()(TOKENS).logits, wanted)


def shared_layer(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp


def shared_head(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def repeated_layers(model):
    model.model.layers.extend(list(model.model.layers))
    model.config.num_hidden_layers = 4
    model.config.layer_types = None


@pytest.mark.parametrize("change", [shared_layer, shared_head, repeated_layers])
def test_what_was_shared_afterwards_is_written_under_each_name(tmp_path, change):
    model = llama()
    change(model)
    shardload.save(model, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    if change is not repeated_layers:  # the caches of shared layers have one place
        comes_back(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name, tensor in shardload.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, stored[name])


def test_a_declared_tie_is_written_once_and_not_once_the_config_denies_it(tmp_path):
    model = llama(tie_word_embeddings=True)
    shardload.save(model, tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    comes_back(model, tmp_path / "tied")
    model.config.tie_word_embeddings = False
    shardload.save(model, tmp_path / "denied")
    assert "lm_head.weight" in load_file(tmp_path / "denied" / "model.safetensors")
    comes_back(model, tmp_path / "denied")


def test_a_library_model_inside_another_is_written_by_the_same_rule(tmp_path):
    model = torch.nn.ModuleDict({"inner": llama(tie_word_embeddings=True)})
    shared_layer(model["inner"])
    shardload.save(model, tmp_path)
    wanted = model.state_dict().keys() - {"inner.lm_head.weight"}
    assert load_file(tmp_path / "model.safetensors").keys() == wanted


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, for a name that PEFT asks for
def test_layers_that_an_adapter_repeats_are_written_after_a_merge(tmp_path):
    peft = pytest.importorskip("peft")
    llama().save_pretrained(tmp_path / "base")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[[0, 2], [0, 2]])
    wrapped = peft.get_peft_model(base, settings)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.2
    wrapped.save_pretrained(tmp_path / "adapter")
    model = shardload.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
    shardload.merge(model)
    shardload.save(model, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert written == {name for name in model.state_dict() if ".lora_" not in name}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    comes_back(model, tmp_path / "out")
