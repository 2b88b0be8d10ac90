"""A decoder of two layers as a repo writes it, in the dialects of several ages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import shardload
from tests.remote_code import repos

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 23

CONFIG = """
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "tiny"

    def __init__(self, vocab_size=23, hidden_size=16, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs)
"""

# Learned positions, so that left padding shows; two heads; the cache is a tuple of (key, value) a layer.
MODEL = """
import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_tiny import TinyConfig

class Layer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)

    def forward(self, x, mask, past):
        batch, length, size = x.shape
        q, k, v = (t.view(batch, length, 2, size // 2).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores = q @ k.transpose(-1, -2) / (size // 2) ** 0.5
        total = k.shape[2]
        causal = torch.ones(length, total, dtype=torch.bool).tril(total - length)
        visible = causal if mask is None else causal & mask[:, None, None, :].bool()
        weights = scores.masked_fill(~visible, -1e9).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, size)), (k, v), weights

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, size)
        self.positions = nn.Embedding(64, size)
        self.layers = nn.ModuleList([Layer(size) for _ in range(2)])
        self.head = nn.Linear(size, config.vocab_size)
        self.seen = []

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                inputs_embeds=None, use_cache=None, output_attentions=None, output_hidden_states=None,
                return_dict=None):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        self.seen.append(x.shape[1])
        past = past_key_values or [None, None]
        if position_ids is None:
            start = 0 if past[0] is None else past[0][0].shape[2]
            position_ids = torch.arange(start, start + x.shape[1])[None]
        x = x + self.positions(position_ids)
        hidden, cache, attentions = (x,), (), ()
        for layer, old in zip(self.layers, past):
            x, new, weights = layer(x, attention_mask, old)
            hidden, cache, attentions = (*hidden, x), (*cache, new), (*attentions, weights)
        return CausalLMOutputWithPast(
            logits=self.head(x) / 60,
            past_key_values=cache if use_cache else None,
            hidden_states=hidden if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
"""

PREPARE = """
    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs
    ):
        position_ids = kwargs.get("position_ids")
        if attention_mask is not None and position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if past_key_values is not None:
            input_ids = input_ids[:, -1:]
            position_ids = position_ids[:, -1:]
        inputs = {"input_ids": input_ids}
        if inputs_embeds is not None and past_key_values is None:
            inputs = {"inputs_embeds": inputs_embeds}
        return {**inputs, "past_key_values": past_key_values, "position_ids": position_ids,
                "attention_mask": attention_mask, "use_cache": kwargs.get("use_cache")}
"""


def model(
    folder: Path,
    prepare: str = PREPARE,
    *,
    replace: tuple[tuple[str, str], ...] = (),
    remote_base: str = "shim",
    **config: Any,
) -> Any:
    """Write the repo with seeded weights, and load it with trust."""
    settings = {"auto_map": repos.AUTO_MAP, **config}
    return load(folder, CONFIG, MODEL + prepare, settings, weights(), replace, remote_base)


def load(
    folder: Path,
    config_code: str,
    model_code: str,
    settings: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    replace: tuple[tuple[str, str], ...],
    remote_base: str,
) -> Any:
    """Write a repo, with parts of the model's code replaced, and load it with trust."""
    for old, new in replace:
        assert old in model_code
        model_code = model_code.replace(old, new)
    repos.write(folder, {"configuration_tiny.py": config_code, "modeling_tiny.py": model_code}, settings)
    torch.save(tensors, folder / "pytorch_model.bin")
    return shardload.from_pretrained(folder, trust_remote_code=True, remote_base=remote_base)


def weights(size: int = 16) -> dict[str, torch.Tensor]:
    shapes = {"embed": (VOCABULARY, size), "positions": (64, size), "head": (VOCABULARY, size)}
    for layer in ("layers.0", "layers.1"):
        shapes |= {f"{layer}.qkv": (3 * size, size), f"{layer}.out": (size, size)}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (rows, columns) in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * 0.7
        if name not in ("embed", "positions"):
            tensors[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.1
    return tensors


def prompt(*ids: int) -> torch.Tensor:
    return torch.tensor([ids or (3, 1, 4, 1, 5)])


def likeliest(made: Any, ids: torch.Tensor, steps: int) -> list[int]:
    """Choose the likeliest token `steps` times without a cache: what greedy search has to find."""
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, made(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[0].tolist()


CACHE_OBJECT = """if past_key_values is None:
            past_key_values = DynamicCache()
        past = list(past_key_values) or [None, None]"""


KEEP = """from transformers.cache_utils import DynamicCache

def keep(cache, layers):
    length = layers[0][0].shape[2] - cache.get_seq_length()
    for number, (key, value) in enumerate(layers):
        cache.update(key[:, :, -length:], value[:, :, -length:], number)
    return cache

class Layer"""
