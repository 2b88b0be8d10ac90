"""The masks of 4.3x-4.4x, against masks that are spelled out entry by entry."""

from __future__ import annotations

import pytest
import torch

from shardload.transformers_shim.modeling_attn_mask_utils import (
    AttentionMaskConverter,
    _create_4d_causal_attention_mask,
    _prepare_4d_attention_mask,
    _prepare_4d_attention_mask_for_sdpa,
    _prepare_4d_causal_attention_mask,
    _prepare_4d_causal_attention_mask_for_sdpa,
)
from tests.transformers_shim.masks import PADDING, additive, seen_by_definition


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


def test_masks_that_can_not_be_made_are_refused():
    with pytest.raises(ValueError, match="must be positive"):
        AttentionMaskConverter(is_causal=True, sliding_window=0)
    with pytest.raises(ValueError, match="that is causal"):
        AttentionMaskConverter(is_causal=False).to_causal_4d(1, 2, 2, torch.float32)
    with pytest.raises(ValueError, match="key_value_length"):
        AttentionMaskConverter(is_causal=True).to_4d(PADDING, 5, torch.float32)
    with pytest.raises(NotImplementedError, match="sliding window"):
        AttentionMaskConverter(is_causal=False, sliding_window=2).to_4d(PADDING, 5, torch.float32)
    with pytest.raises(ValueError, match="must be additive"):
        _prepare_4d_causal_attention_mask_for_sdpa(torch.ones(2, 1, 2, 5), (2, 2), torch.zeros(2, 2, 3), 3)


@pytest.mark.parametrize(
    ("queries", "past", "window", "ignored"),
    [(5, 0, None, True), (1, 4, None, True), (2, 3, None, False), (5, 0, 9, True), (5, 0, 5, False)],
)
def test_torchs_own_causal_mask_is_enough_where_it_is_aligned(queries, past, window, ignored):
    embeds, keys = torch.zeros(2, queries, 3), queries + past
    ask = AttentionMaskConverter._ignore_causal_mask_sdpa
    assert ask(None, embeds, past, window) is ignored
    assert ask(torch.ones(2, keys), embeds, past, window) is ignored
    assert ask(PADDING[:, :keys], embeds, past, window) is False
