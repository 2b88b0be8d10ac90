"""Words: the spellings of published code mean the same, and neighbours in a block do not."""

from __future__ import annotations

import itertools

import pytest

from shardload.diagnosis.pairing.words import parts_of, words_of

SAME = [
    ["q_proj", "query", "wq", "q", "q_lin"],
    ["k_proj", "key", "wk"],
    ["v_proj", "value", "wv"],
    ["o_proj", "wo", "out_proj", "out_lin"],
    ["qkv", "query_key_value", "c_attn", "in_proj", "qkv_proj", "Wqkv"],
    ["gate_proj", "w1", "wi_0", "gate"],
    ["down_proj", "w2", "dense_4h_to_h"],
    ["up_proj", "w3", "c_fc", "dense_h_to_4h", "wi_1"],
    ["mlp", "ffn", "feed_forward", "feedforward", "block_sparse_moe"],
    ["self_attn", "attention", "SelfAttention", "attn"],
    ["post_attention_layernorm", "post_attn_norm", "postAttentionLayerNorm"],
    ["wte", "embed_tokens", "word_embeddings", "tok_embeddings"],
    ["lm_head", "embed_out", "output_layer"],
    ["layers", "h", "blocks", "layer", "resblocks"],
]


@pytest.mark.parametrize("spellings", SAME, ids=lambda spellings: spellings[0])
def test_spellings_of_one_thing_are_the_same_words(spellings):
    assert {frozenset(words_of(spelling)) for spelling in spellings} == {frozenset(words_of(spellings[0]))}


def test_neighbours_of_a_block_are_told_apart():
    names = [spellings[0] for spellings in SAME]
    for one, other in itertools.combinations(names, 2):
        assert set(words_of(one)) != set(words_of(other)), (one, other)


@pytest.mark.parametrize(
    ("segment", "parts"),
    [
        ("LayerNorm2", ("layer", "norm", "2")),
        ("dense_h_to_4h", ("dense", "h", "to", "4h")),
        ("selfAttention", ("self", "attention")),
        ("MLPBlock", ("mlp", "block")),
        ("conv1d", ("conv", "1", "d")),
        ("{}", ("{}",)),
        ("___", ()),
    ],
)
def test_a_segment_falls_into_parts(segment, parts):
    assert parts_of(segment) == parts


def test_a_norm_that_only_says_attention_is_the_one_before_it():
    assert words_of("attention_norm") == ("pre", "attn", "norm")
    assert words_of("q_norm") == ("q", "norm")
    assert words_of("post_attention_norm") == ("post", "attn", "norm")


def test_fillers_say_nothing_and_unknown_words_themselves():
    assert words_of("model") == words_of("transformer") == ()
    assert words_of("zebra_proj") == ("zebra",)
