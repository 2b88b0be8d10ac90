"""Layers of parts called as transformers 4 called them, against the same layers called as they are written."""

from __future__ import annotations

import pytest
import torch

from shardload.library_parts import old_calls
from shardload.library_parts.importer import part_module

pytest.importorskip("transformers")

IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def model():
    llama = part_module("models.llama.modeling_llama")
    torch.manual_seed(0)
    config = llama.LlamaConfig(
        vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return llama.LlamaModel(config).eval()


def test_attention_makes_its_rotary_tables(model):
    states = model.embed_tokens(IDS)
    attention = model.layers[0].self_attn
    tables = model.rotary_emb(states, torch.arange(6)[None])
    expected = attention(hidden_states=states, position_embeddings=tables, attention_mask=None)
    output, weights, cache = attention(
        hidden_states=states, attention_mask=None, position_ids=None, past_key_value=None
    )
    assert torch.equal(output, expected[0])
    assert (weights, cache) == (None, None)
    output, _ = attention(states, attention_mask=None, past_key_value=None, position_embeddings=tables)
    assert torch.equal(output, expected[0])


def test_attention_returns_weights_that_are_asked_for(model):
    states = model.embed_tokens(IDS)
    attention = model.layers[0].self_attn
    output, weights, _ = attention(hidden_states=states, past_key_value=None, output_attentions=True)
    assert weights.shape == (2, 4, 6, 6)
    assert output.shape == states.shape
    assert attention.config._attn_implementation == "sdpa"


def test_older_attributes_are_read_of_the_config(model):
    attention = model.layers[0].self_attn
    assert (attention.num_heads, attention.num_key_value_heads, attention.hidden_size) == (4, 2, 16)
    assert hasattr(attention, "rotary_emb")
    assert not hasattr(attention, "no_such_name")
    assert "rotary_emb" not in dict(attention.named_modules())


def test_a_layer_without_tables_answers_with_a_tuple(model):
    states = model.embed_tokens(IDS)
    layer = model.layers[1]
    tables = model.rotary_emb(states, torch.arange(6)[None])
    expected = layer(states, position_embeddings=tables)
    expected = expected[0] if isinstance(expected, tuple) else expected
    made = layer(states, None, torch.arange(6)[None], None, False, False)
    assert isinstance(made, tuple)
    assert torch.equal(made[0], expected)
    _, weights = layer(states, output_attentions=True)
    assert weights.shape == (2, 4, 6, 6)
    with pytest.raises(TypeError, match="9 arguments by position"):
        layer(states, *[None] * 8)


def test_gradients_reach_through_a_layer_that_is_computed_again(model):
    model.train()
    found = []
    for options in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        if options is not None:
            model.gradient_checkpointing_enable(options)
        model.zero_grad()
        model(IDS).last_hidden_state.square().sum().backward()
        found.append(model.layers[0].mlp.up_proj.weight.grad.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert old_calls._weights.get() is None
