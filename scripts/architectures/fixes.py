"""Settings of model types that the names of their sizes do not give; those of an inner config are a dict inside."""

from __future__ import annotations

from typing import Any

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
IMAGE_TOKENS = {"<image>": 90, "<|image token|>": 90, "<|extra_200|>": 91, "IMGIMGA": 4, "IMGIMGB": 5}
MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 16}

FIXES: dict[str, dict[str, Any]] = {
    # What has no default.
    "autoformer": {"prediction_length": 4},
    "informer": {"prediction_length": 4},
    "time_series_transformer": {"prediction_length": 4},
    "chameleon": {"vocabulary_map": IMAGE_TOKENS},
    "emu3": {"vocabulary_map": IMAGE_TOKENS},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "granite4_vision": {"deepstack_layer_map": [[1, 0]], "downsample_rate": "1/2"},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    # Sizes that have to fit one another.
    "bamba": MAMBA_HEADS,
    "falcon_h1": MAMBA_HEADS | {"mamba_d_ssm": 128},
    "granitemoehybrid": MAMBA_HEADS,
    "bit": {"num_groups": 4},
    "depth_pro": {"patch_size": 64},
    "dots3_note_text": {"num_key_value_heads": 4, "per_layer_config": None},
    "efficientloftr": {"hidden_size": 256},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "glm5_next_text": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mobilevit": {"hidden_sizes": [16, 24, 32]},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: ROPE | {"mrope_section": [2, 3, 3]} for kind in ("full_attention", "sliding_attention")
        }
    },
    "cosmos3_edge_text": {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}},
    "ernie4_5_vl_moe_text": {"rope_parameters": ROPE | {"mrope_section": [3, 3, 2]}},
}
