"""The model in a GGUF file: its config as transformers writes it, and its tensors under transformers' names.

Source: llama.cpp's names of tensors and values, and its converter, which puts the rows of q and k of llama's heads in
another order. Architectures whose converter computes with values (norms plus one, say) are not listed: a header can't
undo that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.keymap.key_map import KeyMap
from shardload.keymap.reshaped import permuted, reshaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.keymap import Derived


@dataclass(frozen=True)
class _Architecture:
    """How a model of llama.cpp is called in transformers; `turned`: q and k are in an order of their own."""

    model_type: str
    name: str
    turned: bool = False
    experts: bool = False


_KNOWN = {
    "llama": _Architecture("llama", "LlamaForCausalLM", turned=True),
    "qwen2": _Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Architecture("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": _Architecture("qwen3_moe", "Qwen3MoeForCausalLM", experts=True),
}
_LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
}  # fmt: skip
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_SIZES = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count", "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base", "num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}  # fmt: skip
_TOKENS = {f"{name}_token_id": f"tokenizer.ggml.{told}_token_id" for name, told in (
    ("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}  # fmt: skip
# What a config can't be made of without more: factors of rotation, one number a layer, experts of another kind.
_MORE = ("rope.scaling.type", "rope.scaling.factor", "attention.sliding_window", "expert_shared_count")


def gguf_config(metadata: Mapping[str, str], tensors: Mapping[str, Derived]) -> dict[str, Any] | None:
    """Return the config of the model in a GGUF file, as config.json has it; None where the file does not say it all."""
    told = json.loads(metadata["gguf"])["values"]
    kind = str(told.get("general.architecture"))
    known = _KNOWN.get(kind)
    table = tensors.get("token_embd.weight")
    if known is None or table is None or "rope_freqs.weight" in tensors:
        return None
    if any(told.get(f"{kind}.{name}") not in (None, "none") for name in _MORE):
        return None
    if bool(told.get(f"{kind}.expert_count")) != known.experts:
        return None
    sizes = {name: told.get(f"{kind}.{value}") for name, value in _SIZES.items()}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    if any(isinstance(value, (list, str)) for value in sizes.values()) or "num_attention_heads" not in sizes:
        return None
    sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
    return {
        "architectures": [known.name],
        "model_type": known.model_type,
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        **({"attention_bias": "blk.0.attn_q.bias" in tensors} if known.model_type != "qwen2" else {}),
        **sizes,
        **{name: told[value] for name, value in _TOKENS.items() if value in told},
    }


def with_model_names(metadata: Mapping[str, str], tensors: Mapping[str, Derived]) -> dict[str, Derived]:
    """Return the tensors of a GGUF file under the names, and in the order of rows, that transformers has.

    Those of an architecture that is not known stay as they are.
    """
    told = json.loads(metadata["gguf"])["values"]
    kind = str(told.get("general.architecture"))
    known = _KNOWN.get(kind)
    if known is None:
        return dict(tensors)
    rules = KeyMap()
    for old, new in _OUTSIDE.items():
        rules = rules.rename(f"{old}.{{...}}", f"{new}.{{...}}")
    for old, new in _LAYER.items():
        rules = rules.rename(f"blk.{{}}.{old}.{{...}}", f"model.layers.{{}}.{new}.{{...}}")
    for old, new in _EXPERTS.items():
        target = f"model.layers.{{}}.mlp.experts.{{n}}.{new}.weight"
        rules = rules.unstack(f"blk.{{}}.{old}.weight", target)
    heads = told.get(f"{kind}.attention.head_count")
    counts = {"attn_q": heads, "attn_k": told.get(f"{kind}.attention.head_count_kv", heads)}
    turned = {
        name: _turned_back(tensor, counts[name.split(".")[2]])
        if known.turned and name.startswith("blk.") and name.split(".")[2] in counts
        else tensor
        for name, tensor in tensors.items()
    }
    return rules.map_headers(turned).tensors


def _turned_back(tensor: Derived, heads: Any) -> Derived:
    """Return a tensor whose rows of a head lie in pairs as one whose halves of a head lie one behind the other."""
    rows, *rest = tensor.shape
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        return tensor
    pairs = reshaped(tensor, (heads, rows // heads // 2, 2, *rest))
    order = [0, 2, 1, *range(3, 3 + len(rest))]
    turned: Derived = reshaped(permuted(pairs, order), tensor.shape)  # type: ignore[assignment]
    return turned
