"""Likeness: the right partner scores above its neighbours, and accepted pairs speak for those around them."""

from __future__ import annotations

import pytest

from shardload.diagnosis.pairing.likeness import Likeness
from tests.diagnosis.pairing.families import family

LLAMA = [
    "model.layers.{}.self_attn.q_proj.weight",
    "model.layers.{}.self_attn.k_proj.weight",
    "model.layers.{}.self_attn.v_proj.weight",
    "model.layers.{}.self_attn.o_proj.weight",
    "model.layers.{}.mlp.gate_proj.weight",
    "model.layers.{}.mlp.up_proj.weight",
    "model.layers.{}.mlp.down_proj.weight",
    "model.layers.{}.input_layernorm.weight",
    "model.layers.{}.post_attention_layernorm.weight",
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
]
NATIVE = [
    "layers.{}.attention.wq.weight",
    "layers.{}.attention.wk.weight",
    "layers.{}.attention.wv.weight",
    "layers.{}.attention.wo.weight",
    "layers.{}.feed_forward.w1.weight",
    "layers.{}.feed_forward.w3.weight",
    "layers.{}.feed_forward.w2.weight",
    "layers.{}.attention_norm.weight",
    "layers.{}.ffn_norm.weight",
    "tok_embeddings.weight",
    "norm.weight",
    "output.weight",
]


def likeness(stored=LLAMA, wanted=NATIVE):
    def made(templates):
        return [family(t, (2,), *[2] * t.count("{}")) for t in templates]

    return Likeness(made(stored), made(wanted))


@pytest.mark.parametrize("place", range(len(LLAMA) - 1))  # `output` alone does not say that it is a head
def test_the_right_partner_scores_best(place):
    scores = [likeness().score(LLAMA[place], other) for other in NATIVE]
    assert max(range(len(NATIVE)), key=scores.__getitem__) == place


def test_numbered_norms_are_ranked_by_their_order():
    blocks = likeness(
        ["h.{}.ln_1.weight", "h.{}.ln_2.weight"],
        ["layers.{}.input_layernorm.weight", "layers.{}.post_attention_layernorm.weight"],
    )
    first = blocks.score("h.{}.ln_1.weight", "layers.{}.input_layernorm.weight")
    second = blocks.score("h.{}.ln_2.weight", "layers.{}.post_attention_layernorm.weight")
    crossed = blocks.score("h.{}.ln_1.weight", "layers.{}.post_attention_layernorm.weight")
    assert first > crossed < second


def test_a_pair_speaks_for_its_siblings_and_against_others():
    before = likeness(["a.x.p", "a.x.r"], ["b.y.q", "c.z.q"])
    assert before.score("a.x.p", "b.y.q") == before.score("a.x.p", "c.z.q")
    before.learn("a.x.r", "b.y.s")
    assert before.score("a.x.p", "b.y.q") > before.score("a.x.p", "c.z.q")
    assert before.names_agree("a.x.p", "b.y.q") == before.names_agree("a.x.p", "c.z.q")


def test_leaves_of_other_frameworks_are_weight_and_bias():
    like = likeness(["n.gamma", "n.beta"], ["n.weight", "n.bias"])
    assert like.score("n.gamma", "n.weight") > like.score("n.gamma", "n.bias")
    assert like.score("n.beta", "n.bias") > like.score("n.beta", "n.weight")


def test_both_ages_of_weight_norm_have_the_same_words():
    like = likeness(["c.weight_g", "c.weight_v"], ["c.parametrizations.weight.original0"])
    new = "c.parametrizations.weight.original{}"
    assert like.names_agree("c.weight_g", new.format(0)) == like.names_agree("c.weight_g", "c.weight_g")
    assert like.score("c.weight_v", new.format(1)) > like.score("c.weight_v", new.format(0))


def test_numbers_in_hostile_names_are_no_work():
    hostile = ["a.norm" + "9" * 5000 + ".weight", "a.norm²".encode().decode() + ".weight", "a.norm1.weight"]
    assert 0 <= likeness(hostile, hostile).score(*hostile[:2]) < 2
