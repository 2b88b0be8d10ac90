"""The base class of parts, against the library's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.library_parts.bridges.model_base import PreTrainedModel
from shardload.library_parts.importer import part_module
from shardload.library_parts.model_files import home_of

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 19, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2,
}  # fmt: skip
KINDS = (
    "LlamaForCausalLM",
    "BertForMaskedLM",
    "BartForConditionalGeneration",
    "T5ForConditionalGeneration",
    "ViTModel",
)


def both(name, **settings):
    part = getattr(part_module(home_of(name)), name)
    return [kind(kind.config_class(**{**SIZES, **settings})) for kind in (getattr(transformers, name), part)]


def names(model, module):
    return next((name for name, each in model.named_modules() if each is module), None)


@pytest.mark.parametrize("name", KINDS)
def test_embeddings_encoder_and_decoder_are_where_the_library_finds_them(name):
    real, part = both(name)
    assert isinstance(part, PreTrainedModel)
    for method in ("get_input_embeddings", "get_output_embeddings"):
        assert names(part, getattr(part, method)()) == names(real, getattr(real, method)())
    if hasattr(real, "get_encoder") and "For" in name and hasattr(real, "get_decoder"):
        assert names(part, part.get_decoder()) == names(real, real.get_decoder())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", KINDS[:4])
def test_what_the_library_ties_is_tied(name, tied):
    real, part = both(name, tie_word_embeddings=tied)
    for model in (real, part):
        model.tie_weights()
    tied_names = [
        {name for name, value in model.named_parameters(remove_duplicate=False)}
        - dict(model.named_parameters()).keys()
        for model in (real, part)
    ]
    assert tied_names[0] == tied_names[1]


def test_embeddings_are_replaced_and_resized():
    _, part = both("LlamaForCausalLM", tie_word_embeddings=False)
    embeddings, head = nn.Embedding(19, 16), nn.Linear(16, 19)
    part.set_input_embeddings(embeddings)
    part.set_output_embeddings(head)
    assert part.model.embed_tokens is embeddings
    assert part.lm_head is head
    part.resize_token_embeddings(24)
    assert part(torch.tensor([[23]])).logits.shape == (1, 1, 24)


def test_modules_are_initialised_as_the_library_does():
    _, part = both("LlamaForCausalLM", initializer_range=0.5)
    linear, norm, words = nn.Linear(64, 64), nn.LayerNorm(8), nn.Embedding(64, 64, padding_idx=3)
    for module in (linear, norm, words, nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2)):
        part._init_weights(module)
    assert 0.4 < linear.weight.std() < 0.6
    assert not linear.bias.any()
    assert torch.equal(norm.weight, torch.ones(8))
    assert not words.weight[3].any()


def test_a_class_takes_its_config_class_from_the_annotation():
    llama = part_module("models.llama.modeling_llama")
    assert llama.LlamaModel.config_class is llama.LlamaConfig

    class Own(llama.LlamaModel):
        config_class = llama.LlamaConfig

    assert Own.config_class is llama.LlamaConfig
