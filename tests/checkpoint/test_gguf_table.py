"""Every architecture of transformers' own GGUF reading: names, layout, values and config, against the model itself.

transformers reads the same files; where its result is another one than the model that was written, THEIRS says so.
"""

from __future__ import annotations

import json
import os

import pytest
import torch

import shardload
from shardload.checkpoint.gguf_table import ROWS
from tests.gguf_files import by_the_converter, values_of, write

S = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 80, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BLOOM = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 80}
FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 80}
T5 = {
    "d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "vocab_size": 80, "decoder_start_token_id": 0,
}  # fmt: skip
GATED = {"feed_forward_proj": "gated-gelu"}
MOE = {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
MODELS = {
    "llama": ("llama", "Llama", "ForCausalLM", S),
    "mixtral": ("llama", "Mixtral", "ForCausalLM", {**S, "num_local_experts": 4}),
    "mistral": ("llama", "Mistral", "ForCausalLM", {**S, "head_dim": 24}),
    "qwen2": ("qwen2", "Qwen2", "ForCausalLM", S),
    "qwen3": ("qwen3", "Qwen3", "ForCausalLM", {**S, "head_dim": 24}),
    "qwen3moe": ("qwen3moe", "Qwen3Moe", "ForCausalLM", {**S, **MOE, "head_dim": 16, "norm_topk_prob": True}),
    "qwen2moe": (
        "qwen2moe", "Qwen2Moe", "ForCausalLM", {**S, **MOE, "shared_expert_intermediate_size": 48}),
    "gpt-oss": (
        "gpt-oss", "GptOss", "ForCausalLM", {**S, "num_local_experts": 4, "head_dim": 16, "num_experts_per_tok": 2}),
    "lfm2": ("lfm2", "Lfm2", "ForCausalLM", {**S, "full_attn_idxs": [1], "block_auto_adjust_ff_dim": False}),
    "falcon-40b": (
        "falcon", "Falcon", "ForCausalLM",
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "multi_query": False}),
    "falcon-7b": ("falcon", "Falcon", "ForCausalLM", FALCON),
    "phi3": ("phi3", "Phi3", "ForCausalLM", {**S, "partial_rotary_factor": 0.75}),
    "bloom": ("bloom", "Bloom", "ForCausalLM", BLOOM),
    "t5": ("t5", "T5", "ForConditionalGeneration", {**T5, **GATED, "tie_word_embeddings": False}),
    "t5-relu": ("t5", "T5", "ForConditionalGeneration", T5),
    "umt5": ("t5", "UMT5", "ForConditionalGeneration", {**T5, **GATED}),
    "t5encoder": ("t5encoder", "T5", "EncoderModel", {**T5, **GATED}),
    "umt5encoder": ("t5encoder", "UMT5", "EncoderModel", {**T5, **GATED}),
    "stablelm": ("stablelm", "StableLm", "ForCausalLM", {**S, "use_qkv_bias": True, "qk_layernorm": True}),
    "stablelm-parallel": ("stablelm", "StableLm", "ForCausalLM", {**S, "use_parallel_residual": True}),
    "gpt2": ("gpt2", "GPT2", "LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 80,
                                             "n_positions": 64, "n_inner": 256}),
    "starcoder2": ("starcoder2", "Starcoder2", "ForCausalLM", S),
    "mamba": ("mamba", "Mamba", "ForCausalLM", {
        "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 80, "state_size": 8}),
    "nemotron": ("nemotron", "Nemotron", "ForCausalLM", S),
    "gemma2": ("gemma2", "Gemma2", "ForCausalLM", {**S, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3", "Gemma3", "ForCausalLM", {**S, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma4": ("gemma4", "Gemma4", "ForCausalLM", {
        **S, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 80, "hidden_size_per_layer_input": 32}),
    "minimax-m2": ("minimax-m2", "MiniMaxM2", "ForCausalLM", {
        **S, "num_local_experts": 4, "head_dim": 16, "rotary_dim": 8, "num_experts_per_tok": 2}),
}  # fmt: skip
_DECODERS = "names only as many blocks of the decoder as the encoder has"
THEIRS = {
    "mixtral": "has no names for it",
    "mistral": "has no names for it",
    "qwen2moe": "gives a matrix of one row another dimension",
    "gpt-oss": "can't read the values of its rotation",
    "falcon-40b": "leaves q, k and v as they lie",
    "t5": _DECODERS, "t5-relu": _DECODERS, "umt5": _DECODERS,
    "stablelm": "has no names for the norms of heads",
    "gemma4": "misses the factor of a layer, which has another end of its name",
}  # fmt: skip
"""What transformers 5.23 does with a file so that it is not the model: the model alone is the oracle there."""
UNSAID = {
    "falcon-7b": {"num_ln_in_parallel_attn", "num_kv_heads"},
    "t5encoder": {"num_decoder_layers", "decoder_start_token_id"},
    "umt5encoder": {"num_decoder_layers"},
}
"""Settings that a class makes nothing of, and the file does not tell."""

# One of each layout, and of each way to compute; `make test-gguf` takes all.
SHORT = (
    "mistral",
    "qwen2moe",
    "gpt-oss",
    "lfm2",
    "falcon-40b",
    "bloom",
    "gpt2",
    "mamba",
    "gemma2",
    "stablelm",
)


def made(name, seed=0):
    """Return a tiny model with random values everywhere, its config and its file's values."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    arch, kind, end, settings = MODELS[name]
    text = "Text" if kind in ("Gemma3", "Gemma4") else ""
    config = getattr(transformers, f"{kind}{text}Config")(**settings, **TOKENS)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}{end}")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("A_log"):  # whose exponential is rounded
                continue
            parameter.copy_(((parameter + torch.randn_like(parameter) * 0.05) * 2**14).round() / 2**14)
        for key, buffer in model.named_buffers():
            if key.endswith("layer_scalar"):
                buffer.fill_(0.5)
    values = values_of(config) if name != "gemma4" else {}
    values |= {f".tokenizer.ggml.{key}": value for key, value in (
        ("bos_token_id", 1), ("eos_token_id", 2), ("padding_token_id", 0))}  # fmt: skip
    values[".general.name"] = name
    return arch, model, config, values


def written(folder, name, *, kind="F32"):
    arch, model, config, values = made(name)
    model.save_pretrained(folder / "own")
    state = dict(shardload.open_checkpoint(folder / "own").items(copy=True))
    tensors = by_the_converter(arch, config, state, like=name if name == "mixtral" else None)
    if name == "lfm2":
        values["attention.head_count_kv"] = [0, 2]
        values["attention.layer_norm_rms_epsilon"] = config.norm_eps
    if name == "t5":
        tensors.append(("output.weight", state["shared.weight"]))
    if name == "mamba":
        values["attention.layer_norm_rms_epsilon"] = config.layer_norm_epsilon
        del values["feed_forward_length"]
    if name == "gpt-oss":
        rope = config.rope_parameters
        values |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(rope["factor"]),
                   "rope.scaling.original_context_length": rope["original_max_position_embeddings"]}  # fmt: skip
    if name == "falcon-7b":
        values["attention.head_count_kv"] = 1
    return write(folder / "m.gguf", arch, tensors, values, kind=kind), model, config


def names_of(row):
    """Return the names of a row as the `gguf` package writes them, without their ends."""
    whole = {name[1:].removesuffix(".weight").removesuffix(".bias") for name in row.names if name[0] == "="}
    inside = {f"blk.{{}}.{name}" for name in (*row.stacks, *(one for pair in row.woven for one in pair))}
    names = whole | inside | {name for name in row.names if name[0] != "="}
    return {name.replace("{}", "{bid}") for name in names}


@pytest.mark.parametrize("arch", ROWS)
def test_the_package_has_these_tensors_and_no_others(arch):
    gguf = pytest.importorskip("gguf")
    code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    listed = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[code]}
    # Factors of rotation, and what no class of transformers has: dense layers of a retriever, experts of deci.
    absent = {"rope_freqs", "rope_factors_long", "rope_factors_short", "blk.{bid}.attn_rot_embd", "dense_2"}
    deci = (
        {name for name in listed if "_exps" in name or name.endswith("gate_inp")} if arch == "deci" else set()
    )
    named = {name for row in ROWS[arch] for name in names_of(row)}
    assert listed - named - absent - deci == set()
    ends = {name.rpartition(".scale")[0] or name for name in named}
    assert ends <= set(gguf.TENSOR_NAMES.values())
    assert arch in {kind for kind, *_ in MODELS.values()} | {"deci"}


def settings(config):
    told = config.to_dict()
    for name in ("transformers_version", "dtype", "architectures", "_name_or_path"):
        told.pop(name, None)
    return told


@pytest.mark.parametrize("name", MODELS if os.environ.get("SHARDLOAD_GGUF") == "all" else SHORT)
def test_a_file_is_the_model_that_it_was_written_from(tmp_path, name):
    path, model, config = written(tmp_path, name)
    given = {"config": config, "model_class": type(model)} if name == "gemma4" else {}
    loaded = shardload.from_pretrained(path, dtype="float32", **given)
    own, wanted = loaded.state_dict(), model.state_dict()
    assert type(loaded) is type(model)
    assert own.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(own[key], wanted[key])] == []
    told, other = settings(loaded.config), settings(config)
    assert {key for key in other if told.get(key) != other[key]} == UNSAID.get(name, set())
    try:
        theirs = type(model).from_pretrained(
            tmp_path, gguf_file=path.name, dtype=torch.float32, config=config
        )
        same = all(torch.equal(theirs.state_dict()[key], wanted[key]) for key in wanted)
    except (NotImplementedError, RuntimeError, TypeError):
        same = False
    assert same == (name not in THEIRS)


@pytest.mark.parametrize("name", ["llama", "gpt-oss", "gemma2"])
def test_a_packed_file_is_converted_and_read_in_parts(tmp_path, name):
    path, _, _ = written(tmp_path, name, kind="Q8_0")
    loaded = shardload.from_pretrained(path, dtype="bfloat16")
    own, packed = (
        loaded.state_dict(),
        len(json.loads(shardload.open_checkpoint(path).metadata["gguf"])["types"]),
    )
    told = f"{packed - (2 if name == 'gpt-oss' else 0)} weights are stored packed"
    assert any(note.startswith(told) for note in shardload.report_of(loaded).notes)
    alone = tmp_path / "alone"
    alone.mkdir()
    path = path.rename(alone / path.name)
    shardload.convert(path if name == "llama" else alone, tmp_path / "plain", dtype="bfloat16")
    again = shardload.from_pretrained(tmp_path / "plain", dtype="bfloat16").state_dict()
    assert all(torch.equal(again[key], own[key]) for key in own)
    plain = shardload.dequantised(shardload.open_checkpoint(path), "float32")
    for key, tensor in plain.tensors.items():
        rows = tensor.shape[0]
        whole, region = plain.read(key), (slice(rows // 4 + 1, rows - rows // 5),)
        assert torch.equal(plain.read(key, region), whole[region]), key
