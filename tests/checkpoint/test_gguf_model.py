"""GGUF files of models of transformers: names, rows of heads and config are those of transformers' own reading."""

from __future__ import annotations

import json

import pytest
from torch import nn

import shardload
from shardload.checkpoint.gguf_model import gguf_config, with_model_names
from shardload.tensor_ref import Span, TensorRef
from tests.checkpoint.formats.test_gguf import by_hand, floats, text


def header(arch="llama", names=("token_embd.weight", "blk.0.attn_q.weight"), **values):
    shapes = {"token_embd.weight": (8, 4)}
    tensors = {name: TensorRef(name, "F32", shapes.get(name, (8, 4)), "m", Span(0, 128)) for name in names}
    told = {
        "general.architecture": arch, f"{arch}.embedding_length": 4, f"{arch}.block_count": 1,
        f"{arch}.attention.head_count": 2,
        **{f"{arch}.{name.replace('__', '.')}": value for name, value in values.items()},
    }  # fmt: skip
    return {"gguf": json.dumps({"types": {}, "values": told})}, tensors


def test_a_config_says_what_the_file_says():
    config = gguf_config(*header())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["vocab_size"], config["num_key_value_heads"], config["tie_word_embeddings"]) == (
        8,
        2,
        True,
    )


@pytest.mark.parametrize(
    ("arch", "more"),
    [
        ("starcoder", {}),
        ("deci", {}),
        ("gemma2", {"block_count": 46}),
        ("qwen2", {"attention__sliding_window": 8}),
        ("lfm2", {"attention__head_count_kv": "eight"}),
        ("llama", {"rope__scaling__type": "yarn"}),
        ("llama", {"expert_count": 8}),
        ("qwen3moe", {}),
        ("llama", {"attention__head_count_kv": [1, 2]}),
        ("llama", {"names": ("token_embd.weight", "rope_freqs.weight")}),
    ],
)
def test_what_a_config_can_not_say_is_not_guessed(arch, more):
    assert gguf_config(*header(arch, **more)) is None


def test_names_of_an_architecture_that_is_not_known_stay():
    metadata, tensors = header("starcoder")
    assert with_model_names(metadata, tensors) == tensors
    assert list(with_model_names(*header())) == [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ]


def test_factors_of_rotation_are_the_config_s():
    names = ("token_embd.weight", "rope_freqs.weight")
    assert list(with_model_names(*header(names=names))) == ["model.embed_tokens.weight"]


def test_a_yarn_is_told_and_other_scalings_are_not_guessed():
    asked = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    scaled = gguf_config(*header(**asked, rope__scaling__original_context_length=32))
    assert scaled["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    assert gguf_config(*header(**asked, rope__scaling__yarn_log_multiplier=0.1)) is None


def test_values_that_the_converter_does_not_write_are_told(tmp_path):
    metadata, tensors = header("gemma2", ("token_embd.weight",))
    tensors["blk.0.attn_norm.weight"] = TensorRef("blk.0.attn_norm.weight", "I8", (4,), "m", Span(0, 4))
    with pytest.raises(shardload.CorruptError, match="attn_norm"):
        with_model_names(metadata, tensors)


@pytest.mark.parametrize(
    ("arch", "what", "cure"),
    [
        (
            "olmo2",
            "architecture 'olmo2' is read under llama.cpp's names",
            "config=…, model_class=… and a key_map=…",
        ),
        ("deci", "all of a config of its architecture 'deci'", "pass config=… and model_class=…"),
    ],
)
def test_a_file_that_makes_no_model_by_itself_is_refused_by_its_architecture(tmp_path, arch, what, cure):
    stored = [("token_embd.weight", (2, 2), 0, 0, floats(1, 2, 3, 4))]
    path = by_hand(tmp_path / "m.gguf", stored, [("general.architecture", 8, text(arch))])
    for options in ({}, {"dtype": "bfloat16"}):
        with pytest.raises(shardload.UnsupportedError, match=what) as caught:
            shardload.from_pretrained(path, **options)
        assert cure in caught.value.cure
        assert str(path) in caught.value.where


def test_what_the_refusal_says_to_pass_loads_the_file(tmp_path):
    stored = [("token_embd.weight", (2, 2), 0, 0, floats(1, 2, 3, 4))]
    for arch, more in (
        ("olmo2", {"key_map": {"token_embd.{...}": "model.embed_tokens.{...}"}}),
        ("deci", {}),
    ):
        path = by_hand(tmp_path / f"{arch}.gguf", stored, [("general.architecture", 8, text(arch))])
        model = shardload.from_pretrained(path, config={}, model_class=_embedding, dtype="float32", **more)
        assert model.model.embed_tokens.weight.tolist() == [[1, 2], [3, 4]]


def _embedding(_):
    model = nn.Module()
    model.model = nn.Module()
    model.model.embed_tokens = nn.Embedding(2, 2)
    return model
