"""`transformers.masking_utils`: masks for code since 4.53, by the config's attention implementation.

"eager" gets additive masks, "sdpa" boolean ones (True attends) or None where torch's own `is_causal` is enough,
"flash_attention_2" the padding mask. All are (batch, 1, queries, keys).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from shardload.transformers_shim._missing import refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Callable

    MaskFunction = Callable[..., Any]


def create_causal_mask(
    config: Any,
    input_embeds: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    cache_position: torch.Tensor | None = None,
    past_key_values: Any = None,
    position_ids: torch.Tensor | None = None,
    or_mask_function: MaskFunction | None = None,
    and_mask_function: MaskFunction | None = None,
    *,
    inputs_embeds: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor | None:
    """Return the causal mask with padding. The functions of (batch, head, query, key) widen or narrow it."""
    refuse_unknown("create_causal_mask", more)
    embeds = input_embeds if input_embeds is not None else inputs_embeds
    assert embeds is not None
    return _make(
        config,
        embeds,
        attention_mask,
        cache_position,
        past_key_values,
        position_ids,
        0,
        or_mask_function,
        and_mask_function,
    )


def create_sliding_window_causal_mask(
    config: Any,
    input_embeds: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    cache_position: torch.Tensor | None = None,
    past_key_values: Any = None,
    position_ids: torch.Tensor | None = None,
    or_mask_function: MaskFunction | None = None,
    and_mask_function: MaskFunction | None = None,
    *,
    inputs_embeds: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor | None:
    """Return the causal mask in which a query sees itself and the `config.sliding_window - 1` keys before it."""
    refuse_unknown("create_sliding_window_causal_mask", more)
    embeds = input_embeds if input_embeds is not None else inputs_embeds
    assert embeds is not None
    window = config.sliding_window
    return _make(
        config,
        embeds,
        attention_mask,
        cache_position,
        past_key_values,
        position_ids,
        window,
        or_mask_function,
        and_mask_function,
    )


def create_masks_for_generate(
    config: Any,
    input_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache_position: torch.Tensor,
    past_key_values: Any,
    **kwargs: Any,
) -> Any:
    """Return the causal mask, or a mask for each kind of layer in `config.layer_types`."""
    makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    arguments = (config, input_embeds, attention_mask, cache_position, past_key_values)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return create_causal_mask(*arguments, **kwargs)
    return {kind: makers[kind](*arguments, **kwargs) for kind in kinds}


def _make(
    config: Any,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    past_key_values: Any,
    position_ids: torch.Tensor | None,
    window: int,
    widen: MaskFunction | None,
    narrow: MaskFunction | None,
) -> torch.Tensor | None:
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask  # the caller's own mask, used as it is
    implementation = config._attn_implementation
    if implementation == "flash_attention_2":
        return attention_mask
    batch, queries, device = embeds.shape[0], embeds.shape[1], embeds.device
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    query = (
        cache_position if cache_position is not None else torch.arange(past, past + queries, device=device)
    )
    keys = past + queries
    padding = None if attention_mask is None else attention_mask[:, :keys].to(device=device, dtype=torch.bool)
    packed = None
    if position_ids is not None and attention_mask is None and past_key_values is None:
        packed = _packed(position_ids.expand(batch, -1))
    plain = widen is None and narrow is None and packed is None and (not window or keys <= window)
    if (
        implementation == "sdpa"
        and plain
        and queries in (1, keys)
        and (padding is None or bool(padding.all()))
    ):
        return None
    seen = _seen(query, torch.arange(keys, device=device), batch, window, widen, narrow, position_ids, packed)
    if padding is not None:
        seen = seen & padding[:, None, None]
    if implementation == "sdpa":
        return seen
    lowest = torch.finfo(embeds.dtype).min
    return torch.zeros(seen.shape, dtype=embeds.dtype, device=device).masked_fill(~seen, lowest)


def _packed(position_ids: torch.Tensor) -> torch.Tensor | None:
    """Return the number of each token's sequence, (batch, length), or None where each row is one sequence."""
    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    numbers = (steps != 1).cumsum(-1)
    return numbers if bool(numbers.any()) else None


def _seen(
    query: torch.Tensor,
    key: torch.Tensor,
    batch: int,
    window: int,
    widen: MaskFunction | None,
    narrow: MaskFunction | None,
    position_ids: torch.Tensor | None,
    packed: torch.Tensor | None,
) -> torch.Tensor:
    """Return which keys a query sees, (batch, 1, queries, keys).

    Of several sequences packed into one row, each sees itself alone, and counts its own positions.
    """
    if packed is not None:
        assert position_ids is not None
        rows = [
            _seen(ids, ids, 1, window, _of_row(widen, row), _of_row(narrow, row), None, None)
            for row, ids in enumerate(position_ids.expand(batch, -1))
        ]
        return torch.cat(rows) & (packed[:, None, :, None] == packed[:, None, None, :])
    seen = key[None] <= query[:, None]
    if window:
        seen = seen & (key[None] > query[:, None] - window)
    seen = seen[None, None].expand(batch, 1, -1, -1)
    if widen is not None:
        seen = seen | _evaluate(widen, batch, query, key)
    if narrow is not None:
        seen = seen & _evaluate(narrow, batch, query, key)
    return seen


def _of_row(function: MaskFunction | None, row: int) -> MaskFunction | None:
    """Return a function of (batch, head, query, key) for one row of the batch alone."""
    return None if function is None else lambda _batch, head, query, key: function(row, head, query, key)


def _evaluate(function: MaskFunction, batch: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the values of a function of (batch, head, query, key), which may index tensors with its arguments."""
    every: Any = function
    for place in range(3, -1, -1):
        if place != 1:
            every = torch.vmap(every, in_dims=tuple(0 if n == place else None for n in range(4)))
    zero = torch.zeros((), dtype=torch.long, device=query.device)
    with _IndexedByScalars():
        found: torch.Tensor = every(torch.arange(batch, device=query.device), zero, query, key)
    return found[:, None]


class _IndexedByScalars(TorchFunctionMode):
    """Indexes with scalar tensors as with tensors of one element: torch 2.10 would ask vmap's for their numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            tensor, asked = args
            places = asked if isinstance(asked, tuple) else (asked,)
            if any(_is_scalar(one) for one in places) and all(
                type(one) is int or _is_scalar(one) for one in places
            ):
                return tensor[tuple(one if type(one) is int else one[None] for one in places)][0]
        return func(*args, **(kwargs or {}))


def _is_scalar(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.ndim == 0 and index.dtype != torch.bool
