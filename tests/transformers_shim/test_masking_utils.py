"""Attention masks: the helpers of 4.3x-4.4x and the functions of 4.53 and later."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from shardload.transformers_shim.cache_utils import DynamicCache
from shardload.transformers_shim.masking_utils import (
    create_causal_mask,
    create_masks_for_generate,
    create_sliding_window_causal_mask,
)
from tests.transformers_shim.masks import PADDING, additive, seen_by_definition


def config_for(implementation, **more):
    return SimpleNamespace(_attn_implementation=implementation, **more)


def test_masks_of_new_code_for_eager_attention():
    embeds = torch.zeros(2, 5, 3, dtype=torch.float16)
    mask = create_causal_mask(config_for("eager"), embeds, PADDING, torch.arange(5), None)
    assert torch.equal(mask, additive(seen_by_definition(PADDING, 5, 5), torch.float16))
    window = config_for("eager", sliding_window=2)
    mask = create_sliding_window_causal_mask(window, embeds, PADDING, torch.arange(5), None)
    assert torch.equal(mask, additive(seen_by_definition(PADDING, 5, 5, 2), torch.float16))


def test_masks_of_new_code_after_a_cache():
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), 0)
    mask = create_causal_mask(config_for("eager"), torch.zeros(2, 2, 3), PADDING, None, cache)
    assert torch.equal(mask, additive(seen_by_definition(PADDING, 2, 5)))


def test_masks_of_new_code_for_fused_attention():
    config, embeds = config_for("sdpa", sliding_window=9), torch.zeros(2, 5, 3)
    assert create_causal_mask(config, embeds, None, torch.arange(5), None) is None
    assert create_sliding_window_causal_mask(config, embeds, None, torch.arange(5), None) is None
    mask = create_causal_mask(config, inputs_embeds=embeds, attention_mask=PADDING)
    assert torch.equal(mask, seen_by_definition(PADDING, 5, 5))
    assert create_causal_mask(config_for("flash_attention_2"), embeds, PADDING) is PADDING
    own = torch.zeros(2, 1, 5, 5)
    assert create_causal_mask(config, embeds, own) is own


def test_mask_functions_widen_and_narrow():
    embeds, config = torch.zeros(2, 5, 3), config_for("sdpa")
    groups = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])
    mask = create_causal_mask(
        config, embeds, None, or_mask_function=lambda b, _h, q, k: groups[b, q] == groups[b, k]
    )
    expected = seen_by_definition(torch.ones(2, 5), 5, 5) | (
        groups[:, None, :, None] == groups[:, None, None]
    )
    assert torch.equal(mask, expected)
    mask = create_causal_mask(config, embeds, None, and_mask_function=lambda _b, _h, q, k: q - k < 2)
    assert torch.equal(mask, seen_by_definition(torch.ones(2, 5), 5, 5, 2))


@pytest.mark.parametrize(
    "seen",
    [
        lambda groups, b, q, k: groups[b, q] == groups[b, k],
        lambda groups, b, q, k: groups[b][q] == groups[b][k],
        lambda groups, b, q, k: groups[0, q] == groups[1, k],
        lambda groups, b, q, k: groups[b].sum() > q + k,
    ],
)
def test_mask_functions_index_tensors_by_their_arguments(seen):
    groups, config = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]), config_for("sdpa")
    mask = create_causal_mask(
        config, torch.zeros(2, 5, 3), None, and_mask_function=lambda b, _h, q, k: seen(groups, b, q, k)
    )
    numbers = [
        [[k <= q and bool(seen(groups, b, q, k)) for k in range(5)] for q in range(5)] for b in range(2)
    ]
    assert mask.squeeze(1).tolist() == numbers


def test_masks_by_the_kind_of_layer():
    config = config_for("eager", sliding_window=2, layer_types=["full_attention", "sliding_attention"])
    masks = create_masks_for_generate(config, torch.zeros(2, 5, 3), PADDING, torch.arange(5), None)
    assert torch.equal(masks["full_attention"], additive(seen_by_definition(PADDING, 5, 5)))
    assert torch.equal(masks["sliding_attention"], additive(seen_by_definition(PADDING, 5, 5, 2)))
