"""Writes tiny models of transformers as GGUF files, as llama.cpp's converter does, by names of the `gguf` package."""

from __future__ import annotations

import re

import torch

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")


def paired(weight, heads):
    """Return the rows of q or k as llama.cpp stores them: the halves of a head in turn."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _llama(name, tensor, config):
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    kind = name.split(".")[-2]
    yield name, paired(tensor, heads[kind]) if kind in heads else tensor


def _norms(name, tensor, config):
    yield name, tensor + 1 if name.endswith("norm.weight") else tensor


def _bloom(name, tensor, config):
    if "query_key_value" in name:
        parts = tensor.view(config.n_head, 3, -1, *tensor.shape[1:])
        tensor = parts.transpose(0, 1).reshape(tensor.shape)
    yield name.removeprefix("transformer."), tensor


def _falcon(name, tensor, config):
    if "query_key_value" in name:
        heads = config.num_kv_heads if config.new_decoder_architecture else 1
        groups = tensor.view(heads, -1, config.hidden_size // config.num_attention_heads, tensor.shape[1])
        tensor = torch.cat(
            [part.flatten(0, 2) for part in (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])]
        )
    yield name, tensor


def _gpt2(name, tensor, config):
    yield name, tensor.t() if name.endswith(("attn.weight", "proj.weight", "fc.weight")) else tensor


def _mamba(name, tensor, config):
    if name.endswith("A_log"):
        tensor = -tensor.exp()
    yield name, tensor.squeeze(1) if "conv1d.weight" in name else tensor


def _lfm2(name, tensor, config):
    yield name, tensor.squeeze(1) if "conv.conv" in name else tensor


def _gpt_oss(name, tensor, config):
    if name.endswith("sinks"):
        yield f"{name}.weight", tensor
    elif "gate_up_proj" in name:
        end = ".bias" if name.endswith("_bias") else ".weight"
        tensor = tensor if end == ".bias" else tensor.transpose(-1, -2)
        first = name.partition("gate_up_proj")[0]
        for number, part in enumerate(("gate_proj", "up_proj")):
            rows = tensor[..., number::2] if end == ".bias" else tensor[:, number::2]
            yield f"{first}{part}{end}", rows
    elif name.endswith("down_proj"):
        yield f"{name}.weight", tensor.transpose(-1, -2)
    else:
        yield name.replace("down_proj_bias", "down_proj.bias"), tensor


def _minimax(name, tensor, config):
    yield name.replace("e_score_correction_bias", "e_score_correction.bias"), tensor


def _gemma4(name, tensor, config):
    yield f"{name}.weight" if name.endswith("layer_scalar") else name, tensor


def _as_it_is(name, tensor, config):
    yield name, tensor


PREPARED = {
    "llama": _llama, "mixtral": _llama, "deci": _llama, "bloom": _bloom, "falcon": _falcon, "gpt2": _gpt2,
    "mamba": _mamba, "lfm2": _lfm2, "gpt-oss": _gpt_oss, "minimax-m2": _minimax, "nemotron": _norms,
    "gemma2": _norms, "gemma3": _norms, "gemma4": _gemma4,
}  # fmt: skip
VALUES = {
    "block_count": ("num_hidden_layers", "n_layer", "num_layers"), "decoder_block_count": ("num_decoder_layers",),
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "feed_forward_length": ("intermediate_size", "n_inner", "d_ff", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads", "n_head", "num_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim", "d_kv"), "attention.sliding_window": ("sliding_window",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.relative_buckets_count": ("relative_attention_num_buckets",),
    "attn_logit_softcapping": ("attn_logit_softcapping",), "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"), "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "rope.dimension_count": ("rotary_dim",), "shortconv.l_cache": ("conv_L_cache",),
    "ssm.state_size": ("state_size",), "ssm.conv_kernel": ("conv_kernel",), "ssm.inner_size": ("intermediate_size",),
    "ssm.time_step_rank": ("time_step_rank",), "decoder_start_token_id": ("decoder_start_token_id",),
}  # fmt: skip
"""The values of a file, and the settings of a config that they are written from."""


def values_of(config):
    """Return the values that the converter writes of a config."""
    found = {
        key: next((value for name in names if (value := getattr(config, name, None)) is not None), None)
        for key, names in VALUES.items()
    }
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    found["rope.freq_base"] = rope.get("rope_theta")
    if "partial_rotary_factor" in rope and "rope.dimension_count" in found:
        size = found["attention.key_length"] or found["embedding_length"] // found["attention.head_count"]
        found["rope.dimension_count"] = int(rope["partial_rotary_factor"] * size)
    return {key: value for key, value in found.items() if value is not None}


def write_values(writer, arch, values):
    """Write values of an architecture, and plain ones under names with a dot at their beginning."""
    for key, value in values.items():
        name = key[1:] if key.startswith(".") else f"{arch}.{key}"
        kind = type(value).__name__
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            {"int": writer.add_uint32, "float": writer.add_float32, "str": writer.add_string}[kind](
                name, value
            )


def by_the_converter(arch, config, state, *, like=None):
    """Return (name in the file, tensor) of a model's tensors, as the converter makes them."""
    import gguf

    code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    layers = max(
        getattr(config, name, None) or 0 for name in ("num_hidden_layers", "num_layers", "num_decoder_layers")
    )
    names = gguf.get_tensor_name_map(code, layers)
    stacked = {}
    made = []
    for name, tensor in state.items():
        found = _EXPERT.fullmatch(name)
        if found:
            stacked.setdefault(f"{found[1]}.{found[3]}.weight", {})[int(found[2])] = tensor
            continue
        if match := re.fullmatch(r"(.+layernorm)\.norms\.(\d+)\.weight", name):
            stacked.setdefault(f"{match[1]}.weight", {})[int(match[2])] = tensor
            continue
        made += PREPARED.get(like or arch, _as_it_is)(name, tensor, config)
    made += [(name, torch.stack([each[n] for n in sorted(each)])) for name, each in stacked.items()]
    return [
        (names.get_name(name, try_suffixes=(".weight", ".bias")) or name, tensor) for name, tensor in made
    ]


def write(path, arch, tensors, values, *, kind="F32"):
    """Write a file of tensors and values; matrices as `kind`, all else in float32."""
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    write_values(writer, arch, values)
    for name, tensor in tensors:
        is_matrix = tensor.dim() > 1 and tensor.shape[-1] % 32 == 0 and name.endswith(".weight")
        own = kind if is_matrix else "F32"
        code = gguf.GGMLQuantizationType[own]
        writer.add_tensor(name, gguf.quantize(tensor.float().contiguous().numpy(), code), raw_dtype=code)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path
