"""Caches of a fixed length: what they return at each position, and the loop that makes one."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim._fixed_caches import HybridCache, SlidingWindowCache, StaticCache
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from tests.remote_code.repos import build, write

CONFIG = PretrainedConfig(
    num_hidden_layers=2, num_attention_heads=2, hidden_size=8, sliding_window=4, max_position_embeddings=32
)
STATES = (
    torch.arange(1.0, 7).repeat_interleave(8).reshape(1, 6, 2, 4).transpose(1, 2)
)  # token n is full of n + 1


def held(cache, layer, first, last, **options):
    """Give a layer the tokens from first to last; return what the layer then holds, one number per token."""
    options["cache_position"] = torch.arange(first, last)
    keys, values = cache.update(STATES[:, :, first:last], -STATES[:, :, first:last], layer, options)
    assert torch.equal(keys, -values)
    return keys[0, 0, :, 0].tolist()


def test_a_static_cache_has_every_token_at_its_place():
    cache = StaticCache(CONFIG, max_batch_size=1, max_cache_len=7)
    assert held(cache, 0, 0, 3) == [1, 2, 3, 0, 0, 0, 0]
    assert held(cache, 0, 3, 4) == [1, 2, 3, 4, 0, 0, 0]
    assert (cache.get_seq_length(), cache.get_max_cache_shape(), len(cache)) == (4, 7, 2)
    assert cache.get_mask_sizes(torch.arange(1)) == (7, 0)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_a_sliding_cache_has_the_last_tokens():
    cache = SlidingWindowCache(CONFIG, max_batch_size=1, max_cache_len=7)
    assert held(cache, 0, 0, 2) == [1, 2, 0, 0]
    assert held(cache, 0, 2, 3) == [1, 2, 3, 0]
    assert held(cache, 0, 3, 4) == [
        2,
        3,
        0,
        4,
    ]  # as the releases did it: the first place goes at the last place
    assert held(cache, 0, 4, 5) == [3, 0, 4, 5]
    assert held(cache, 1, 0, 6) == [1, 2, 3, 4, 5, 6]  # a long prompt attends to itself
    assert cache.key_cache[1][0, 0, :, 0].tolist() == [3, 4, 5, 6]
    assert cache.max_cache_len == 4


def test_a_hybrid_cache_has_both_kinds_of_layers():
    cache = HybridCache(CONFIG, max_batch_size=1, max_cache_len=7, dtype=torch.float16)
    assert cache.is_sliding == [True, False]
    assert [keys.shape[2] for keys in cache.key_cache] == [4, 7]
    assert held(cache, 0, 0, 2, sliding_window=4) == [1, 2, 0, 0]
    assert held(cache, 1, 0, 2) == [1, 2, 0, 0, 0, 0, 0]
    assert cache.key_cache[0].dtype == torch.float16
    with pytest.raises(ValueError, match="sliding_window"):
        HybridCache(PretrainedConfig(sliding_window=None), max_batch_size=1)


CODE = """
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import HybridCache
from transformers.modeling_outputs import CausalLMOutputWithPast

class Counts(PreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, 8)
        self.lengths = []

    def forward(self, input_ids, past_key_values=None, cache_position=None, use_cache=None, return_dict=None):
        assert isinstance(past_key_values, HybridCache)
        states = self.embed(input_ids).unflatten(-1, (2, 4)).transpose(1, 2)
        keys, _ = past_key_values.update(states, states, 0, {"cache_position": cache_position, "sliding_window": 4})
        self.lengths.append((tuple(keys.shape), past_key_values.get_seq_length()))
        logits = states.transpose(1, 2).flatten(2) @ self.embed.weight.T
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, cache_position=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, cache_position=cache_position, **kwargs)
        return {**inputs, "input_ids": input_ids[:, cache_position]}
"""


def test_generate_makes_the_hybrid_cache_that_a_class_asks_for(tmp_path):
    settings = {
        "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "sliding_window": 4, "vocab_size": 11,
        "cache_implementation": "hybrid", "transformers_version": "4.50.0",
        "auto_map": {"AutoModelForCausalLM": "code.Counts"},
    }  # fmt: skip
    model = build(*write(tmp_path, {"code.py": CODE}, settings), remote_base="shim").eval()
    made = model.generate(torch.arange(3)[None], max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert made.shape == (1, 7)
    assert model.lengths == [((1, 2, 4, 4), 3)] * 4  # one place stays empty, as above
