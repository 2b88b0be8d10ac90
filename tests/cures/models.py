"""Small classes that take a config, for the commands too: `--model-class tests.cures.models:Net`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def size(config: Any, name: str, default: int) -> int:
    return int(config.get(name, default) if isinstance(config, dict) else getattr(config, name, default))


class Net(nn.Module):
    """A trunk of layers with an output layer."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(size(config, "num_layers", 3)))
        self.head = nn.Linear(4, 7)


class Held(nn.Module):
    """A trunk below a path of its own."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.net = Net(config)


class Tall(Net):
    """A trunk whose output layer has the shape of its embedding, and a bias."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.head = nn.Linear(4, 9)


class Sized(nn.Module):
    """One tensor for each field of the config that a checkpoint may differ in."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.wte = nn.Embedding(size(config, "vocab_size", 50), 16)
        self.wpe = nn.Embedding(size(config, "max_position_embeddings", 32), 16)
        self.token_type_embeddings = nn.Embedding(size(config, "type_vocab_size", 3), 16)
        self.prefix_encoder = nn.Module()
        self.prefix_encoder.embedding = nn.Embedding(size(config, "pre_seq_len", 8), 24)
        self.proj = nn.Linear(16, size(config, "proj_dim", 12))
        self.conv = nn.Conv2d(3, size(config, "channels", 4), 3)
        self.classifier = nn.Linear(16, size(config, "num_labels", 2))


SIZED = {
    "vocab_size": 50, "max_position_embeddings": 32, "type_vocab_size": 3, "pre_seq_len": 8, "proj_dim": 12,
    "channels": 4, "num_labels": 2,
}  # fmt: skip


class Block(nn.Module):
    """Attention with fewer heads of keys, and a gated feed-forward part."""

    def __init__(self, d: int, f: int, rows: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(d, bias=False)
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, rows, bias=False)
        self.v_proj = nn.Linear(d, rows, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)
        self.gate_proj = nn.Linear(d, f, bias=False)
        self.up_proj = nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)


class Decoder(nn.Module):
    """A decoder whose sizes all come from the config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        d, heads = size(config, "hidden_size", 32), size(config, "num_attention_heads", 4)
        rows = size(config, "num_key_value_heads", 2) * (d // heads)
        f, vocab = size(config, "intermediate_size", 48), size(config, "vocab_size", 60)
        self.embed_tokens = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(Block(d, f, rows) for _ in range(size(config, "num_hidden_layers", 2)))
        self.norm = nn.LayerNorm(d, bias=False)
        self.lm_head = nn.Linear(d, vocab, bias=False)


DECODER = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "vocab_size": 60, "num_hidden_layers": 2,
}  # fmt: skip


class Patched(nn.Module):
    """A patch embedding and a table of positions with a row for each patch and one more."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        patch = size(config, "patch_size", 4)
        self.patch_embed = nn.Conv2d(3, 16, patch, patch)
        rows = (size(config, "image_size", 16) // patch) ** 2 + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, 16))
        self.norm = nn.LayerNorm(16)


class Trunk(Decoder):
    """A decoder without an output layer, whose other names are published in many spellings."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        del self.lm_head


class Towers(nn.Module):
    """Two decoders, of which each has a part of the config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        parts = config if isinstance(config, dict) else vars(config)
        self.language_model = Decoder(parts["text_config"])
        self.vision_tower = Decoder(parts["vision_config"])


class Stacked(nn.Module):
    """Experts in one tensor, and a matrix that joins two."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.experts = nn.Module()
        self.experts.down_proj = nn.Parameter(torch.zeros(3, 4, 6))
        self.mlp = nn.Module()
        self.mlp.gate_up_proj = nn.Linear(4, 12, bias=False)
        self.norm = nn.LayerNorm(4)


class Prefixed(nn.Module):
    """A model that has a prefix encoder where the config says how long the prefix is, as ChatGLM's code makes it."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.transformer = Net(config)
        rows = size(config, "pre_seq_len", 0)
        if rows:
            columns = 5 if size(config, "prefix_projection", 0) else 24
            self.transformer.prefix_encoder = nn.Module()
            self.transformer.prefix_encoder.embedding = nn.Embedding(rows, columns)
            if columns == 5:
                self.transformer.prefix_encoder.trans = nn.Sequential(
                    nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 24)
                )
