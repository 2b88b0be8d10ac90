"""The architectures of GGUF files that have a class in transformers: one row of data each.

Source: llama.cpp's names of tensors and values, and what its converter does with a model of transformers: which rows
it puts in another order, what it transposes, joins, and computes. Names are compared with those of the `gguf` package
by tests/checkpoint/test_gguf_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Names = dict[str, str]


@dataclass(frozen=True)
class Architecture:
    """How a model of llama.cpp is written by transformers.

    `names` are templates of tensors without their last segment, or whole ones that begin with "=". `config` says what
    each setting is made of: the name of a value, several with "|" between them, or a word and a name (`gguf_config`
    has the words). `layout` and `values` say by the name in a block how a tensor is laid out in the file, and what was
    computed with it. `stacks` are experts in one tensor, `woven` two tensors whose rows take turns in the model's.
    `when` tells two rows of one architecture apart. `refused` are values of which a config can't be made. A row without
    a `name` has no class in transformers: its tensors are renamed, and a config has to be given.
    """

    model_type: str
    name: str
    names: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    stacks: Mapping[str, str] = field(default_factory=dict)
    woven: Mapping[tuple[str, str], str] = field(default_factory=dict)
    scaling: Mapping[str, Any] = field(default_factory=dict)
    when: str = ""
    refused: tuple[tuple[str, int], ...] = ()


def _layer(names: Names, outside: Names, of: str = "model.layers") -> Names:
    """Return the names of a model's tensors, of those in a block and of those outside."""
    return {**outside, **{f"blk.{{}}.{old}": f"{of}.{{}}.{new}" for old, new in names.items()}}


_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_LLAMA = {**_ATTENTION, **_NORMS, **_MLP}
_GEMMA = {
    **_LLAMA, "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_GPT_BLOCK = {
    "attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip
_GPT_OUTSIDE = {
    "token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head",
}  # fmt: skip
_EXPERTS = {f"ffn_{one}_exps": f"mlp.experts.{{n}}.{one}_proj.weight" for one in ("gate", "up", "down")}
_MIXTRAL_GATE = {"ffn_gate_inp": "block_sparse_moe.gate"}
_MIXTRAL_EXPERTS = {
    f"ffn_{old}_exps": f"block_sparse_moe.experts.{{n}}.{new}.weight"
    for old, new in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
}
_T5_ATTENTION = {
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_o": "o",
    "attn_rel_b": "relative_attention_bias",
}
_T5_FFN = {"ffn_gate": "wi_0", "ffn_down": "wo"}


def _t5(up: str) -> Names:
    names = {"token_embd": "shared", "output": "lm_head"}
    for short, long, ffn in (("enc", "encoder", 1), ("dec", "decoder", 2)):
        block = f"{long}.block.{{}}.layer"
        names[f"{short}.output_norm"] = f"{long}.final_layer_norm"
        names[f"{short}.blk.{{}}.attn_norm"] = f"{block}.0.layer_norm"
        names[f"{short}.blk.{{}}.ffn_norm"] = f"{block}.{ffn}.layer_norm"
        for old, new in {**_T5_FFN, "ffn_up": up}.items():
            names[f"{short}.blk.{{}}.{old}"] = f"{block}.{ffn}.DenseReluDense.{new}"
        for old, new in _T5_ATTENTION.items():
            names[f"{short}.blk.{{}}.{old}"] = f"{block}.0.SelfAttention.{new}"
            names[f"dec.blk.{{}}.cross_{old}"] = f"decoder.block.{{}}.layer.1.EncDecAttention.{new}"
    names["dec.blk.{}.cross_attn_norm"] = "decoder.block.{}.layer.1.layer_norm"
    return names


_BASE = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count", "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv|attention.head_count",
    "head_dim": "attention.key_length", "rope_theta": "rope.freq_base",
}  # fmt: skip
_RMS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
_DENSE = {**_BASE, **_RMS, "attention_bias": "has blk.0.attn_q.bias"}
_LLAMA_LIKE = {**_DENSE, "head_dim": "attention.key_length|rope.dimension_count"}
_WINDOW = {"sliding_window": "attention.sliding_window"}
_ROUTED = {"num_experts_per_tok": "expert_used_count"}
_QWEN_MOE = {
    **_BASE, **_RMS, **_ROUTED, "num_experts": "expert_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}  # fmt: skip
_GEMMA_CONFIG = {
    **_DENSE, **_WINDOW, "query_pre_attn_scalar": "attention.key_length",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
_NORM_EPS = "attention.layer_norm_epsilon|attention.layer_norm_rms_epsilon"
_PAIRED = {"attn_q": "paired rows", "attn_k": "paired rows"}
_T5_CONFIG = {
    "d_model": "embedding_length", "d_ff": "feed_forward_length", "d_kv": "attention.key_length",
    "num_heads": "attention.head_count", "num_layers": "block_count", "n_positions": "context_length",
    "num_decoder_layers": "decoder_block_count|block_count",
    "relative_attention_num_buckets": "attention.relative_buckets_count", "layer_norm_epsilon": _NORM_EPS,
    "decoder_start_token_id": "decoder_start_token_id",
}  # fmt: skip
_FALCON = {
    "hidden_size": "embedding_length", "ffn_hidden_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "num_kv_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length", "layer_norm_epsilon": _NORM_EPS, "rope_theta": "rope.freq_base",
    "bias": "has blk.0.attn_qkv.bias", "multi_query": "one attention.head_count_kv",
    "new_decoder_architecture": "several attention.head_count_kv",
}  # fmt: skip


_MINUS_ONE = dict.fromkeys(
    (
        "attn_norm",
        "ffn_norm",
        "post_attention_norm",
        "post_ffw_norm",
        "attn_q_norm",
        "attn_k_norm",
        "output_norm",
    ),
    "plus one",
)
_TWO_SIZES = (("block_count", 46), ("block_count", 62))  # of gemma's 27B, whose scale of q is another


def _row(*row: Any, **more: Any) -> tuple[Architecture, ...]:
    return (Architecture(*row, **more),)


def _t5_rows(kind: str, **more: Any) -> tuple[Architecture, ...]:
    """Return the rows of T5 and of UMT5, whose layers have a bias each; llama.cpp tells two kinds of MLP apart."""
    plain = "lacks enc.blk.0.ffn_gate.weight"
    known = (("umt5", "has enc.blk.1.attn_rel_b.weight"), ("umt5", "named *umt5*"), ("t5", ""))
    return tuple(
        Architecture(
            name,
            f"{name.upper()}{kind}",
            _t5("wi" if is_plain else "wi_1"),
            {**_T5_CONFIG, "feed_forward_proj": "= relu" if is_plain else "= gated-gelu", **more},
            when=" & ".join(filter(None, (when, is_plain))),
        )
        for name, when in known
        for is_plain in (plain, "")
    )


# fmt: off
ROWS: dict[str, tuple[Architecture, ...]] = {
    "llama": (
        Architecture(
            "mixtral", "MixtralForCausalLM", _layer({**_ATTENTION, **_NORMS, **_MIXTRAL_GATE}, _OUTSIDE),
            {**_LLAMA_LIKE, **_ROUTED, **_WINDOW, "attention_bias": None, "num_local_experts": "expert_count"},
            _PAIRED, stacks=_MIXTRAL_EXPERTS, when="has blk.0.ffn_gate_inp.weight"),
        Architecture(
            "mistral", "MistralForCausalLM", _layer(_LLAMA, _OUTSIDE),
            {**_LLAMA_LIKE, **_WINDOW, "attention_bias": None}, _PAIRED, when="named mistral"),
        Architecture("llama", "LlamaForCausalLM", _layer(_LLAMA, _OUTSIDE), _LLAMA_LIKE, _PAIRED),
    ),
    "deci": _row("deci", "", _layer(_LLAMA, _OUTSIDE), {}, _PAIRED),
    "qwen2": _row("qwen2", "Qwen2ForCausalLM", _layer(_LLAMA, _OUTSIDE), {**_BASE, **_RMS}),
    "qwen3": _row("qwen3", "Qwen3ForCausalLM", _layer(_LLAMA, _OUTSIDE), _DENSE),
    "qwen3moe": _row(
        "qwen3_moe", "Qwen3MoeForCausalLM", _layer({**_LLAMA, "ffn_gate_inp": "mlp.gate"}, _OUTSIDE),
        {**_QWEN_MOE, "norm_topk_prob": True, "attention_bias": "has blk.0.attn_q.bias"}, stacks=_EXPERTS),
    "qwen2moe": _row(
        "qwen2_moe", "Qwen2MoeForCausalLM",
        _layer({
            **_LLAMA, "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            **{f"ffn_{one}_shexp": f"mlp.shared_expert.{one}_proj" for one in ("gate", "up", "down")}}, _OUTSIDE),
        {
            **_QWEN_MOE, "qkv_bias": "has blk.0.attn_q.bias", "head_dim": None,
            "shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
        {"ffn_gate_inp_shexp": "one row"}, stacks=_EXPERTS),
    "gpt-oss": _row(
        "gpt_oss", "GptOssForCausalLM",
        _layer(
            {
                **_ATTENTION, "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
                "ffn_gate_inp": "mlp.router"},
            {
                **_OUTSIDE, "=blk.{}.attn_sinks.weight": "model.layers.{}.self_attn.sinks",
                "=blk.{}.ffn_down_exps.weight": "model.layers.{}.mlp.experts.down_proj",
                "=blk.{}.ffn_down_exps.bias": "model.layers.{}.mlp.experts.down_proj_bias"}),
        {
            **_DENSE, **_ROUTED, **_WINDOW, "num_local_experts": "expert_count",
            "intermediate_size": "expert_feed_forward_length|feed_forward_length"},
        {"ffn_down_exps": "transposed"}, scaling={"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        woven={("ffn_gate_exps", "ffn_up_exps"): "model.layers.{}.mlp.experts.gate_up_proj"}),
    "lfm2": _row(
        "lfm2", "Lfm2ForCausalLM",
        _layer(
            {
                "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
                "attn_output": "self_attn.out_proj", "attn_q_norm": "self_attn.q_layernorm",
                "attn_k_norm": "self_attn.k_layernorm", "attn_norm": "operator_norm", "ffn_norm": "ffn_norm",
                "ffn_gate": "feed_forward.w1", "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3",
                "shortconv.conv": "conv.conv", "shortconv.in_proj": "conv.in_proj",
                "shortconv.out_proj": "conv.out_proj"},
            {**_OUTSIDE, "token_embd_norm": "model.embedding_norm", "output_norm": "model.embedding_norm"}),
        {
            **_BASE, "head_dim": None, "num_key_value_heads": "most attention.head_count_kv",
            "full_attn_idxs": "places attention.head_count_kv", "block_auto_adjust_ff_dim": False,
            "conv_L_cache": "shortconv.l_cache", "norm_eps": "attention.layer_norm_rms_epsilon",
            "conv_bias": "has blk.0.shortconv.conv.bias"},
        {"shortconv.conv": "middle dimension"}),
    "falcon": (
        Architecture(
            "falcon", "FalconForCausalLM",
            _layer({**_GPT_BLOCK, "attn_norm_2": "ln_attn", "attn_norm": "ln_mlp"}, _GPT_OUTSIDE, "transformer.h"),
            _FALCON, {"attn_qkv": "grouped heads"}, when="has blk.0.attn_norm_2.weight"),
        Architecture(
            "falcon", "FalconForCausalLM",
            _layer({**_GPT_BLOCK, "attn_norm": "input_layernorm"}, _GPT_OUTSIDE, "transformer.h"),
            {**_FALCON, "num_ln_in_parallel_attn": 1}, {"attn_qkv": "grouped heads"}),
    ),
    "phi3": _row(
        "phi3", "Phi3ForCausalLM",
        _layer({**_LLAMA, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}, _OUTSIDE),
        {
            **_BASE, **_RMS, **_WINDOW, "head_dim": None, "partial_rotary_factor": "share rope.dimension_count",
            "original_max_position_embeddings": "rope.scaling.original_context_length"}),
    "bloom": _row(
        "bloom", "BloomForCausalLM",
        _layer(
            {**_GPT_BLOCK, **_NORMS},
            {**_GPT_OUTSIDE, "token_embd_norm": "transformer.word_embeddings_layernorm"}, "transformer.h"),
        {
            "hidden_size": "embedding_length", "n_layer": "block_count", "n_head": "attention.head_count",
            "layer_norm_epsilon": _NORM_EPS},
        {"attn_qkv": "heads of q, k, v"}),
    "t5": _t5_rows("ForConditionalGeneration"),
    "t5encoder": _t5_rows("EncoderModel", num_decoder_layers=None, decoder_start_token_id=None),
    "stablelm": _row(
        "stablelm", "StableLmForCausalLM", _layer(_LLAMA, _OUTSIDE),
        {
            **_BASE, "head_dim": None, "layer_norm_eps": _NORM_EPS, "use_qkv_bias": "has blk.0.attn_q.bias",
            "qk_layernorm": "has blk.0.attn_q_norm.weight", "use_parallel_residual": "lacks blk.0.ffn_norm.weight",
            "partial_rotary_factor": "share rope.dimension_count"},
        stacks={f"attn_{one}_norm": f"self_attn.{one}_layernorm.norms.{{n}}.weight" for one in "qk"}),
    "gpt2": _row(
        "gpt2", "GPT2LMHeadModel",
        _layer(
            {
                "attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
                "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
            {**_GPT_OUTSIDE, "token_embd": "transformer.wte", "position_embd": "transformer.wpe"}, "transformer.h"),
        {
            "n_embd": "embedding_length", "n_layer": "block_count", "n_head": "attention.head_count",
            "n_positions": "rows position_embd.weight", "n_inner": "feed_forward_length",
            "layer_norm_epsilon": _NORM_EPS},
        dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), "transposed")),
    "starcoder2": _row(
        "starcoder2", "Starcoder2ForCausalLM",
        _layer({**_LLAMA, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}, _OUTSIDE),
        {**_BASE, **_WINDOW, "head_dim": None, "norm_epsilon": _NORM_EPS, "use_bias": "has blk.0.attn_q.bias"}),
    "mamba": _row(
        "mamba", "MambaForCausalLM",
        _layer(
            {
                "attn_norm": "norm", "ssm_in": "mixer.in_proj", "ssm_conv1d": "mixer.conv1d", "ssm_x": "mixer.x_proj",
                "ssm_dt": "mixer.dt_proj", "ssm_out": "mixer.out_proj"},
            {
                "token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head",
                "=blk.{}.ssm_a": "backbone.layers.{}.mixer.A_log", "=blk.{}.ssm_d": "backbone.layers.{}.mixer.D"},
            "backbone.layers"),
        {
            "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "state_size": "ssm.state_size",
            "conv_kernel": "ssm.conv_kernel", "time_step_rank": "ssm.time_step_rank",
            "expand": "ratio ssm.inner_size embedding_length", "use_bias": "has blk.0.ssm_in.bias",
            "use_conv_bias": "has blk.0.ssm_conv1d.bias",
            "layer_norm_epsilon": "attention.layer_norm_rms_epsilon|attention.layer_norm_epsilon"},
        {"ssm_conv1d": "middle dimension"}, {"ssm_a": "minus exponential"}),
    "nemotron": _row(
        "nemotron", "NemotronForCausalLM", _layer(_LLAMA, _OUTSIDE),
        {
            **_BASE, "norm_eps": _NORM_EPS, "attention_bias": "has blk.0.attn_q.bias",
            "mlp_bias": "has blk.0.ffn_up.bias", "partial_rotary_factor": "share rope.dimension_count"},
        values=_MINUS_ONE),
    "gemma2": _row(
        "gemma2", "Gemma2ForCausalLM", _layer(_GEMMA, _OUTSIDE), _GEMMA_CONFIG,
        values=_MINUS_ONE, refused=_TWO_SIZES),
    "gemma3": _row(
        "gemma3_text", "Gemma3ForCausalLM", _layer(_GEMMA, _OUTSIDE),
        {**_GEMMA_CONFIG, "rope_local_base_freq": "rope.freq_base_swa"}, values=_MINUS_ONE, refused=_TWO_SIZES),
    "gemma4": _row(
        "gemma4_text", "",
        _layer(
            {
                **_GEMMA, "inp_gate": "per_layer_input_gate", "proj": "per_layer_projection",
                "post_norm": "post_per_layer_input_norm", "ffn_gate_inp": "router.proj",
                "pre_ffw_norm_2": "pre_feedforward_layernorm_2", "post_ffw_norm_1": "post_feedforward_layernorm_1",
                "post_ffw_norm_2": "post_feedforward_layernorm_2"},
            {
                **_OUTSIDE, "per_layer_token_embd": "model.embed_tokens_per_layer",
                "per_layer_model_proj": "model.per_layer_model_projection",
                "per_layer_proj_norm": "model.per_layer_projection_norm",
                "=blk.{}.layer_output_scale.weight": "model.layers.{}.layer_scalar",
                "=blk.{}.ffn_gate_inp.scale": "model.layers.{}.router.scale",
                "=blk.{}.ffn_down_exps.scale": "model.layers.{}.router.per_expert_scale",
                "=blk.{}.ffn_down_exps.weight": "model.layers.{}.experts.down_proj",
                "=blk.{}.ffn_gate_up_exps.weight": "model.layers.{}.experts.gate_up_proj"})),
    "minimax-m2": _row(
        "minimax_m2", "MiniMaxM2ForCausalLM",
        _layer(
            {**_ATTENTION, **_NORMS, **_MIXTRAL_GATE},
            {**_OUTSIDE, "=blk.{}.exp_probs_b.bias": "model.layers.{}.block_sparse_moe.e_score_correction_bias"}),
        {
            **_BASE, **_RMS, **_ROUTED, "num_local_experts": "expert_count", "rotary_dim": "rope.dimension_count",
            "intermediate_size": "expert_feed_forward_length|feed_forward_length"},
        stacks=_MIXTRAL_EXPERTS),
}
"""The rows of each architecture, by llama.cpp's name for it; the first whose `when` holds is the file's."""
# fmt: on
