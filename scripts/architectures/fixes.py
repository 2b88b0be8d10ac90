"""Settings of model types that the names of their sizes do not give; those of an inner config are a dict inside."""

from __future__ import annotations

from typing import Any

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
IMAGE_TOKENS = {"<image>": 90, "<|image token|>": 90, "<|extra_200|>": 91, "IMGIMGA": 4, "IMGIMGB": 5}
GEMMA4 = {
    "model_type": "gemma4_text",
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 6,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
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
    "gemma4_assistant": {"text_config": GEMMA4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 64},
    # Sizes that have to fit one another.
    "bamba": MAMBA_HEADS | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA_HEADS | {"mamba_d_ssm": 128},
    "granitemoehybrid": MAMBA_HEADS,
    "bit": {"num_groups": 4},
    "depth_pro": {"patch_size": 64},
    "dots3_note_text": {"per_layer_config": {}, "num_key_value_heads": 4, "swa_head_dim": 32},
    "efficientloftr": {"hidden_size": 256},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
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
    "led": {"attention_window": [8, 8]},
    "maskformer": {"backbone_config": {"embed_dim": 24}},
    "maskformer-swin": {"embed_dim": 24},
    "swin": {"embed_dim": 24},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "mamba", "hybrid"]},
    "vitmatte": {"fusion_hidden_sizes": [64, 32, 16, 8], "convstream_hidden_sizes": [8, 16, 32]},
    "tvp": {"visual_prompt_size": 8},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer_decoder": {"num_filters": 2},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 16]},
    "swin2sr": {"embed_dim": 48},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: ROPE | {"mrope_section": [2, 3, 3]} for kind in ("full_attention", "sliding_attention")
        }
    },
    "cosmos3_edge_text": {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}},
    "glm4v_text": {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}},
    "glm4v_moe_text": {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}},
    "glm_image_text": {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}},
    "glm_ocr_text": {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}},
    "ernie4_5_vl_moe_text": {"rope_parameters": ROPE | {"mrope_section": [3, 3, 2]}},
}
