"""Attention masks: the helpers of 4.3x-4.4x and the functions of 4.53 and later."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from shardload.transformers_shim.cache_utils import DynamicCache
from shardload.transformers_shim.masking_utils import (
    create_causal_mask,
    create_masks_for_generate,
    create_sliding_window_causal_mask,
)
from shardload.transformers_shim.modeling_attn_mask_utils import (
    AttentionMaskConverter,
    _create_4d_causal_attention_mask,
    _prepare_4d_attention_mask,
    _prepare_4d_attention_mask_for_sdpa,
    _prepare_4d_causal_attention_mask,
    _prepare_4d_causal_attention_mask_for_sdpa,
)

PADDING = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


def additive(seen, dtype=torch.float32):
    """Return the additive mask of a nested list or a tensor of what is seen."""
    seen = torch.as_tensor(seen)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def seen_by_definition(padding, queries, keys, window=None):
    """Spell the causal mask out, entry by entry."""
    seen = torch.zeros(padding.shape[0], 1, queries, keys, dtype=torch.bool)
    for batch, query, key in itertools.product(range(padding.shape[0]), range(queries), range(keys)):
        place = query + keys - queries
        near = window is None or place - key < window
        seen[batch, 0, query, key] = key <= place and near and bool(padding[batch, key])
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_causal_masks_with_padding_and_a_cache(dtype, queries):
    embeds = torch.zeros(2, queries, 3, dtype=dtype)
    mask = _prepare_4d_causal_attention_mask(PADDING, (2, queries), embeds, 5 - queries)
    assert torch.equal(mask, additive(seen_by_definition(PADDING, queries, 5), dtype))
    assert mask.dtype == dtype


@pytest.mark.parametrize("window", [1, 2, 3])
def test_with_a_sliding_window_a_query_sees_itself_and_so_many_keys_before_it(window):
    embeds = torch.zeros(2, 5, 3)
    mask = _prepare_4d_causal_attention_mask(PADDING, (2, 5), embeds, 0, window)
    assert torch.equal(mask, additive(seen_by_definition(PADDING, 5, 5, window + 1)))


def test_without_a_mask_one_query_needs_none():
    embeds = torch.zeros(2, 1, 3)
    assert _prepare_4d_causal_attention_mask(None, (2, 1), embeds, 4) is None
    assert _create_4d_causal_attention_mask((2, 1), torch.float32, torch.device("cpu"), 4) is None
    mask = _create_4d_causal_attention_mask((2, 3), torch.float32, torch.device("cpu"), 2)
    assert torch.equal(mask, additive(seen_by_definition(torch.ones(2, 5), 3, 5)))


def test_a_mask_of_four_dimensions_says_what_is_seen():
    seen = torch.randint(0, 2, (2, 1, 3, 5))
    embeds = torch.zeros(2, 3, 4)
    mask = _prepare_4d_causal_attention_mask(seen.float(), (2, 3), embeds, 2)
    assert torch.equal(mask, additive(seen.bool()))
    with pytest.raises(ValueError, match="should be"):
        _prepare_4d_causal_attention_mask(seen.float(), (2, 4), embeds, 2)


def test_for_the_fused_kernel_a_mask_that_says_nothing_is_none():
    embeds = torch.zeros(2, 5, 3)
    assert _prepare_4d_causal_attention_mask_for_sdpa(None, (2, 5), embeds, 0) is None
    assert _prepare_4d_causal_attention_mask_for_sdpa(torch.ones(2, 5), (2, 5), embeds, 0) is None
    mask = _prepare_4d_causal_attention_mask_for_sdpa(PADDING, (2, 5), embeds, 0)
    assert torch.equal(mask, additive(seen_by_definition(PADDING, 5, 5)))
    # Several queries after a cache: torch's `is_causal` would align them to the wrong corner.
    embeds = torch.zeros(2, 2, 3)
    mask = _prepare_4d_causal_attention_mask_for_sdpa(None, (2, 2), embeds, 3)
    assert torch.equal(mask, additive(seen_by_definition(torch.ones(2, 5), 2, 5)))
    already = additive(seen_by_definition(PADDING, 2, 5))
    assert _prepare_4d_causal_attention_mask_for_sdpa(already, (2, 2), embeds, 3) is already


def test_masks_that_are_not_causal():
    assert torch.equal(
        _prepare_4d_attention_mask(PADDING, torch.float32, 2),
        additive(PADDING.bool()[:, None, None].expand(2, 1, 2, 5)),
    )
    assert _prepare_4d_attention_mask_for_sdpa(torch.ones(2, 5), torch.float32) is None
    assert _prepare_4d_attention_mask_for_sdpa(PADDING, torch.float32).shape == (2, 1, 5, 5)


def test_rows_that_see_nothing_see_everything():
    mask = additive(seen_by_definition(PADDING, 5, 5))
    lowest = torch.finfo(torch.float32).min
    for arguments in ({"min_dtype": lowest}, lowest, (PADDING, lowest)):
        if isinstance(arguments, dict):
            opened = AttentionMaskConverter._unmask_unattended(mask, **arguments)
        else:
            given = arguments if isinstance(arguments, tuple) else (arguments,)
            opened = AttentionMaskConverter._unmask_unattended(mask, *given)
        assert not opened[0, 0, :2].any()
        assert torch.equal(opened[1], mask[1])


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


def test_masks_by_the_kind_of_layer():
    config = config_for("eager", sliding_window=2, layer_types=["full_attention", "sliding_attention"])
    masks = create_masks_for_generate(config, torch.zeros(2, 5, 3), PADDING, torch.arange(5), None)
    assert torch.equal(masks["full_attention"], additive(seen_by_definition(PADDING, 5, 5)))
    assert torch.equal(masks["sliding_attention"], additive(seen_by_definition(PADDING, 5, 5, 2)))
