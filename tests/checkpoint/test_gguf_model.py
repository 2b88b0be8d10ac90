"""GGUF files of models of transformers: names, rows of heads and config are those of transformers' own reading."""

from __future__ import annotations

import json
import re

import pytest
import torch

import shardload
from shardload.checkpoint.gguf_model import gguf_config, with_model_names
from shardload.tensor_ref import Span, TensorRef

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 80, "max_position_embeddings": 64, "head_dim": 16,
    "rope_theta": 5000.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
KINDS = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3moe": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}),
}


def paired(weight, heads):
    """Return the rows of q or k as llama.cpp stores them: the halves of a head in turn."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def by_the_package(folder, arch, config, state):
    """Write a model as llama.cpp's converter does, by the names and the types of the `gguf` package."""
    gguf = pytest.importorskip("gguf")
    names = gguf.get_tensor_name_map(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch), 2)
    writer = gguf.GGUFWriter(folder / "m.gguf", arch)
    writer.add_uint32(f"{arch}.block_count", config.num_hidden_layers)
    writer.add_uint32(f"{arch}.context_length", config.max_position_embeddings)
    writer.add_uint32(f"{arch}.embedding_length", config.hidden_size)
    writer.add_uint32(f"{arch}.feed_forward_length", config.intermediate_size)
    writer.add_uint32(f"{arch}.attention.head_count", config.num_attention_heads)
    writer.add_uint32(f"{arch}.attention.head_count_kv", config.num_key_value_heads)
    writer.add_uint32(f"{arch}.attention.key_length", 16)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{arch}.rope.freq_base", 5000.0)
    if arch == "qwen3moe":
        writer.add_uint32(f"{arch}.expert_count", 4)
        writer.add_uint32(f"{arch}.expert_used_count", 2)
        writer.add_uint32(f"{arch}.expert_feed_forward_length", 32)
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    stacked = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(\w+)\.weight", name)
        if found:
            stacked.setdefault(f"{found[1]}.{found[3]}.weight", []).append(tensor)
            continue
        if arch == "llama" and ".q_proj." in name:
            tensor = paired(tensor, 4)
        if arch == "llama" and ".k_proj." in name:
            tensor = paired(tensor, 2)
        add(gguf, writer, names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)
    for name, tensors in stacked.items():
        add(gguf, writer, names.get_name(name, try_suffixes=(".weight",)), torch.stack(tensors))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return folder / "m.gguf"


def add(gguf, writer, name, tensor):
    kind = gguf.GGMLQuantizationType.Q8_0 if tensor.dim() > 1 else gguf.GGMLQuantizationType.F32
    packed = gguf.quantize(tensor.float().contiguous().numpy(), kind)
    writer.add_tensor(name, packed, raw_dtype=kind)


@pytest.mark.parametrize("arch", KINDS)
def test_a_model_is_that_of_transformers(tmp_path, arch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    kind, more = KINDS[arch]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **more, tie_word_embeddings=False)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    model.save_pretrained(tmp_path / "own")
    state = dict(shardload.open_checkpoint(tmp_path / "own").items(copy=True))
    path = by_the_package(tmp_path, arch, config, state)

    loaded = shardload.from_pretrained(path, dtype="float32")
    # The config is given: transformers 5.23 does not read the width of qwen3's heads.
    theirs = type(model).from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32, config=config)
    own, other = loaded.state_dict(), theirs.state_dict()
    assert own.keys() == other.keys()
    for name in other:
        assert torch.equal(own[name], other[name]), name
    for name in ("hidden_size", "rms_norm_eps", "num_key_value_heads", "vocab_size", "head_dim"):
        assert getattr(loaded.config, name) == pytest.approx(getattr(config, name)), name
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, theirs(ids).logits)
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=0.05, rtol=0.05)

    shardload.convert(path, tmp_path / "plain", dtype="float32")
    again = shardload.from_pretrained(tmp_path / "plain").state_dict()
    assert all(torch.equal(again[name], own[name]) for name in own)


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
        ("gemma2", {}),
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
    metadata, tensors = header("gemma2")
    assert with_model_names(metadata, tensors) == tensors
    assert list(with_model_names(*header())) == [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ]
