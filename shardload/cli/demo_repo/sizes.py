"""The sizes of the demo model, with the names, shapes and shards that each stores."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

BYTES_PER_WEIGHT = 2
"""The weights are float16."""

_COMMON: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForSequenceClassification": "modeling_chatglm.ChatGLMForSequenceClassification",
    },
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "use_cache": True,
    "torch_dtype": "float16",
    "transformers_version": "4.27.1",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True, slots=True)
class DemoSize:
    """One size of the demo model.

    `dimensions` are the size's own fields of `config.json`. A shard ends before the tensor that would take
    it past `shard_limit` bytes.
    """

    name: str
    dimensions: dict[str, int]
    shard_limit: int

    @property
    def config(self) -> dict[str, Any]:
        """The whole `config.json`."""
        return {"_name_or_path": f"shardload/chatglm2-{self.name}", **_COMMON, **self.dimensions}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every stored tensor's shape, in the order of the model's state dict."""
        config = self.config
        hidden, ffn = config["hidden_size"], config["ffn_hidden_size"]
        channels = config["kv_channels"]
        query = channels * config["num_attention_heads"]
        fused = query + 2 * channels * config["multi_query_group_num"]
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.embedding.word_embeddings.weight": (config["padded_vocab_size"], hidden),
            "transformer.rotary_pos_emb.inv_freq": (channels // 4,),
        }
        for number in range(config["num_layers"]):
            layer = f"transformer.encoder.layers.{number}."
            shapes[layer + "input_layernorm.weight"] = (hidden,)
            shapes[layer + "self_attention.query_key_value.weight"] = (fused, hidden)
            shapes[layer + "self_attention.query_key_value.bias"] = (fused,)
            shapes[layer + "self_attention.dense.weight"] = (hidden, query)
            shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
            shapes[layer + "mlp.dense_h_to_4h.weight"] = (2 * ffn, hidden)
            shapes[layer + "mlp.dense_4h_to_h.weight"] = (hidden, ffn)
        shapes["transformer.encoder.final_layernorm.weight"] = (hidden,)
        shapes["transformer.output_layer.weight"] = (config["padded_vocab_size"], hidden)
        return shapes

    @property
    def shards(self) -> list[list[str]]:
        """The names of the tensors, one list per shard."""
        shards: list[list[str]] = [[]]
        held = 0
        for name, shape in self.shapes.items():
            nbytes = prod(shape) * BYTES_PER_WEIGHT
            if shards[-1] and held + nbytes > self.shard_limit:
                shards.append([])
                held = 0
            shards[-1].append(name)
            held += nbytes
        return shards

    @property
    def nbytes(self) -> int:
        """The bytes of all weights in one format."""
        return sum(prod(shape) for shape in self.shapes.values()) * BYTES_PER_WEIGHT


SIZES: dict[str, DemoSize] = {
    size.name: size
    for size in (
        DemoSize(
            "small",
            {
                "num_layers": 6,
                "hidden_size": 512,
                "ffn_hidden_size": 1024,
                "num_attention_heads": 8,
                "kv_channels": 64,
                "padded_vocab_size": 8192,
                "seq_length": 2048,
            },
            shard_limit=6_750_000,
        ),
        DemoSize(
            "6b",
            {
                "num_layers": 28,
                "hidden_size": 4096,
                "ffn_hidden_size": 13696,
                "num_attention_heads": 32,
                "kv_channels": 128,
                "padded_vocab_size": 65024,
                "seq_length": 32768,
            },
            shard_limit=2_000_000_000,
        ),
    )
}
"""`small` is made in seconds; `6b` has the shapes and the shards of the published ChatGLM2-6B."""
