"""An encoder and a decoder of two layers as a repo writes them: a tuple of four tensors a layer is the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.remote_code import repos
from tests.transformers_shim.generation.small_repos import load

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY, SIZE = 23, 16

CONFIG = """
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "tiny-seq2seq"

    def __init__(self, vocab_size=23, hidden_size=16, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = 2
        super().__init__(**kwargs)
"""

# `seen` notes how many positions each pass reads. transformers 5.x runs this code too, without a cache.
MODEL = """
import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .configuration_tiny import TinyConfig

class Attention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.q, self.kv, self.out = (nn.Linear(size, n * size) for n in (1, 2, 1))

    def keys_and_values(self, x):
        return tuple(heads(t) for t in self.kv(x).chunk(2, -1))

    def forward(self, x, k, v, visible):
        scores = heads(self.q(x)) @ k.transpose(-1, -2) / k.shape[-1] ** 0.5
        weights = scores.masked_fill(~visible, -1e9).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(x.shape)), weights

def heads(x):
    return x.view(*x.shape[:2], 2, -1).transpose(1, 2)

class Encoder(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, size)
        self.positions = nn.Embedding(64, size)
        self.layers = nn.ModuleList([Attention(size) for _ in range(2)])
        self.seen = []

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, output_attentions=None,
                output_hidden_states=None, return_dict=None):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        self.seen.append(x.shape[1])
        x = x + self.positions.weight[: x.shape[1]]
        visible = torch.ones_like(x[:, :, 0]) if attention_mask is None else attention_mask
        hidden, attentions = (x,), ()
        for layer in self.layers:
            x, weights = layer(x, *layer.keys_and_values(x), visible[:, None, None, :].bool())
            hidden, attentions = (*hidden, x), (*attentions, weights)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=hidden if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, size)
        self.positions = nn.Embedding(64, size)
        self.layers = nn.ModuleList([Attention(size) for _ in range(2)])
        self.cross = nn.ModuleList([Attention(size) for _ in range(2)])
        self.seen = []

    def forward(self, input_ids, encoded, encoder_mask, attention_mask, past):
        start, length = (0 if past is None else past[0][0].shape[2]), input_ids.shape[1]
        self.seen.append(length)
        x = self.embed(input_ids) + self.positions.weight[start : start + length]
        visible = torch.ones(length, start + length, dtype=torch.bool).tril(start)
        if attention_mask is not None:
            visible = visible & attention_mask[:, None, None, :].bool()
        read = torch.ones_like(encoded[:, :, 0]) if encoder_mask is None else encoder_mask
        cache, hidden, attentions, crosses = (), (x,), (), ()
        for number, (layer, cross) in enumerate(zip(self.layers, self.cross)):
            k, v = layer.keys_and_values(x)
            if past is None:
                other = cross.keys_and_values(encoded)
            else:
                k, v = torch.cat([past[number][0], k], 2), torch.cat([past[number][1], v], 2)
                other = past[number][2:]
            x, weights = layer(x, k, v, visible)
            x, cross_weights = cross(x, *other, read[:, None, None, :].bool())
            cache, hidden = (*cache, (k, v, *other)), (*hidden, x)
            attentions, crosses = (*attentions, weights), (*crosses, cross_weights)
        return x, cache, hidden, attentions, crosses

class TinyModel(PreTrainedModel, GenerationMixin):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module):
        pass

    def get_encoder(self):
        return self.encoder

    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None,
                encoder_outputs=None, past_key_values=None, inputs_embeds=None, use_cache=None,
                output_attentions=None, output_hidden_states=None, return_dict=None):
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds)
        x, cache, hidden, attentions, crosses = self.decoder(
            decoder_input_ids, encoder_outputs[0], attention_mask, decoder_attention_mask, past_key_values
        )
        return Seq2SeqLMOutput(
            logits=self.head(x) / 3000,
            past_key_values=cache if use_cache else None,
            decoder_hidden_states=hidden if output_hidden_states else None,
            decoder_attentions=attentions if output_attentions else None,
            cross_attentions=crosses if output_attentions else None,
        )
"""

PREPARE = """
    def prepare_inputs_for_generation(
        self, decoder_input_ids, past_key_values=None, attention_mask=None, decoder_attention_mask=None,
        use_cache=None, encoder_outputs=None, **kwargs
    ):
        if past_key_values is not None:
            decoder_input_ids = decoder_input_ids[:, past_key_values[0][0].shape[2] :]
        return {"decoder_input_ids": decoder_input_ids, "past_key_values": past_key_values,
                "attention_mask": attention_mask, "decoder_attention_mask": decoder_attention_mask,
                "encoder_outputs": encoder_outputs, "use_cache": use_cache}
"""

SETTINGS = {
    "is_encoder_decoder": True,
    "decoder_start_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def model(
    folder: Path,
    prepare: str = PREPARE,
    *,
    replace: tuple[tuple[str, str], ...] = (),
    remote_base: str = "shim",
    **config: Any,
) -> Any:
    """Write the repo with seeded weights, and load it with trust."""
    auto_map = {**repos.AUTO_MAP, "AutoModelForSeq2SeqLM": "modeling_tiny.TinyModel"}
    settings = {"auto_map": auto_map, **SETTINGS, **config}
    return load(folder, CONFIG, MODEL + prepare, settings, weights(), replace, remote_base)


def weights() -> dict[str, torch.Tensor]:
    shapes = {"head": (VOCABULARY, SIZE)}
    for part in ("encoder", "decoder"):
        shapes |= {f"{part}.embed": (VOCABULARY, SIZE), f"{part}.positions": (64, SIZE)}
    for layers in ("encoder.layers", "decoder.layers", "decoder.cross"):
        for number in range(2):
            for name, times in (("q", 1), ("kv", 2), ("out", 1)):
                shapes[f"{layers}.{number}.{name}"] = (times * SIZE, SIZE)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (rows, columns) in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * 0.7
        if not name.endswith(("embed", "positions")):
            tensors[f"{name}.bias"] = torch.randn(rows, generator=generator) * 0.1
    return tensors


def prompt() -> torch.Tensor:
    return torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def likeliest(
    made: Any, ids: torch.Tensor, steps: int, start: tuple[int, ...] = (2,), **more: Any
) -> list[int]:
    """Choose the likeliest token `steps` times, encoder and all without a cache: what greedy search has to find."""
    written = torch.tensor([start])
    with torch.no_grad():
        for _ in range(steps):
            logits = made(input_ids=ids, decoder_input_ids=written, **more).logits
            written = torch.cat([written, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return written[0].tolist()
