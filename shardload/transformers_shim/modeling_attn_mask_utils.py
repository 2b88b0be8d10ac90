"""`transformers.modeling_attn_mask_utils`: padding masks as additive masks of (batch, 1, queries, keys).

Additive masks are 0 where a query attends and the dtype's minimum elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


class AttentionMaskConverter:
    """Makes additive masks from padding masks, causal ones if `is_causal`.

    With `sliding_window` a query sees itself and that many keys before it: one more than in `masking_utils`.
    """

    def __init__(self, is_causal: bool, sliding_window: int | None = None) -> None:
        if sliding_window is not None and sliding_window <= 0:
            raise ValueError(f"sliding_window is {sliding_window}: it must be positive")
        self.is_causal = is_causal
        self.sliding_window = sliding_window

    def to_causal_4d(
        self,
        batch_size: int,
        query_length: int,
        key_value_length: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor | None:
        """Return the causal mask without padding; None for a single query, which attends to everything."""
        if not self.is_causal:
            raise ValueError("to_causal_4d is for a converter that is causal")
        if query_length == 1 and self.sliding_window is None:
            return None
        past = key_value_length - query_length
        return self._make_causal_mask(
            (batch_size, query_length), dtype, torch.device(device), past, self.sliding_window
        )

    def to_4d(
        self,
        attention_mask_2d: torch.Tensor,
        query_length: int,
        dtype: torch.dtype,
        key_value_length: int | None = None,
    ) -> torch.Tensor:
        """Return the mask for a padding mask (batch, keys), 1 for tokens; causal if the converter is."""
        padding = self._expand_mask(attention_mask_2d, dtype, tgt_len=query_length)
        if not self.is_causal:
            if self.sliding_window is not None:
                raise NotImplementedError("a sliding window is for causal masks")
            return padding
        if query_length == 1 and self.sliding_window is None:
            return padding
        if key_value_length is None:
            raise ValueError("a causal mask needs key_value_length")
        causal = self.to_causal_4d(
            attention_mask_2d.shape[0], query_length, key_value_length, dtype, attention_mask_2d.device
        )
        assert causal is not None
        return causal.masked_fill(padding.bool(), torch.finfo(dtype).min)

    @staticmethod
    def _make_causal_mask(
        input_ids_shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        past_key_values_length: int = 0,
        sliding_window: int | None = None,
    ) -> torch.Tensor:
        """Return the causal mask of (batch, queries) that follow `past_key_values_length` cached keys."""
        batch, queries = input_ids_shape
        query = torch.arange(queries, device=device)[:, None] + past_key_values_length
        key = torch.arange(queries + past_key_values_length, device=device)[None]
        hidden = key > query
        if sliding_window is not None:
            hidden = hidden | (key <= query - sliding_window - 1)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(
            hidden, torch.finfo(dtype).min
        )
        return mask[None, None].expand(batch, 1, *mask.shape)

    @staticmethod
    def _expand_mask(mask: torch.Tensor, dtype: torch.dtype, tgt_len: int | None = None) -> torch.Tensor:
        """Return the additive mask, (batch, 1, tgt_len, keys), of a padding mask (batch, keys)."""
        batch, keys = mask.shape
        inverted = 1.0 - mask[:, None, None].expand(batch, 1, tgt_len or keys, keys).to(dtype)
        return inverted.masked_fill(inverted.bool(), torch.finfo(dtype).min)

    @staticmethod
    def _unmask_unattended(
        expanded_mask: torch.Tensor, *args: Any, min_dtype: float | None = None
    ) -> torch.Tensor:
        """Let queries that attend to nothing attend to everything, as fused kernels return NaN for them.

        Releases before 4.40 passed (padding mask, minimum), later ones the minimum alone; both are accepted.
        """
        lowest = min_dtype if min_dtype is not None else args[-1]
        return expanded_mask.mul(~torch.all(expanded_mask == lowest, dim=-1, keepdim=True))

    @staticmethod
    def _ignore_causal_mask_sdpa(
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        past_key_values_length: int,
        sliding_window: int | None = None,
        is_training: bool = False,
    ) -> bool:
        """Return whether torch's own `is_causal` makes the mask unnecessary."""
        queries = inputs_embeds.shape[1]
        keys = queries + past_key_values_length
        if queries not in (1, keys) or (sliding_window is not None and keys >= sliding_window):
            return False
        if _is_tracing() and not is_training:
            return False
        return attention_mask is None or (attention_mask.dim() != 4 and bool(torch.all(attention_mask == 1)))


def _is_tracing() -> bool:
    jit: Any = torch.jit
    return bool(jit.is_tracing() or torch.compiler.is_compiling())


def _prepare_4d_causal_attention_mask(
    attention_mask: torch.Tensor | None,
    input_shape: Sequence[int],
    inputs_embeds: torch.Tensor,
    past_key_values_length: int,
    sliding_window: int | None = None,
) -> torch.Tensor | None:
    """Return the causal mask of (batch, queries) for a padding mask, a mask of 1s and 0s in 4 dimensions, or None."""
    converter = AttentionMaskConverter(is_causal=True, sliding_window=sliding_window)
    batch, queries = input_shape[0], input_shape[-1]
    keys, dtype = queries + past_key_values_length, inputs_embeds.dtype
    if attention_mask is not None and attention_mask.dim() == 2:
        return converter.to_4d(attention_mask, queries, dtype, keys)
    if attention_mask is not None and attention_mask.dim() == 4:
        if tuple(attention_mask.shape) != (batch, 1, queries, keys):
            raise ValueError(
                f"the mask is {tuple(attention_mask.shape)} and should be {(batch, 1, queries, keys)}"
            )
        inverted = 1.0 - attention_mask
        return inverted.masked_fill(inverted.bool(), torch.finfo(dtype).min)
    return converter.to_causal_4d(batch, queries, keys, dtype, inputs_embeds.device)


def _prepare_4d_causal_attention_mask_for_sdpa(
    attention_mask: torch.Tensor | None,
    input_shape: Sequence[int],
    inputs_embeds: torch.Tensor,
    past_key_values_length: int,
    sliding_window: int | None = None,
) -> torch.Tensor | None:
    """Return the causal mask for torch's fused attention, or None where its `is_causal` is enough.

    A mask in 4 dimensions must be additive already.
    """
    if AttentionMaskConverter._ignore_causal_mask_sdpa(
        attention_mask, inputs_embeds, past_key_values_length, sliding_window
    ):
        return None
    if attention_mask is not None and attention_mask.dim() == 4:
        if attention_mask.max() != 0:
            raise ValueError("a mask in 4 dimensions must be additive, with a maximum of 0")
        mask: torch.Tensor | None = attention_mask
    else:
        mask = _prepare_4d_causal_attention_mask(
            attention_mask, input_shape, inputs_embeds, past_key_values_length, sliding_window
        )
    # torch's kernels for CPUs accept rows that attend to nothing; those for CUDA do not.
    if attention_mask is None or mask is None or mask.device.type != "cuda":
        return mask
    return AttentionMaskConverter._unmask_unattended(mask, min_dtype=torch.finfo(inputs_embeds.dtype).min)


def _prepare_4d_attention_mask(
    mask: torch.Tensor, dtype: torch.dtype, tgt_len: int | None = None
) -> torch.Tensor:
    """Return the mask for a padding mask (batch, keys), not causal."""
    return AttentionMaskConverter._expand_mask(mask, dtype, tgt_len)


def _prepare_4d_attention_mask_for_sdpa(
    mask: torch.Tensor, dtype: torch.dtype, tgt_len: int | None = None
) -> torch.Tensor | None:
    """Return the mask for a padding mask, not causal; None where nothing is masked."""
    if not _is_tracing() and (tgt_len or mask.shape[1]) in (1, mask.shape[1]) and torch.all(mask == 1):
        return None
    return AttentionMaskConverter._expand_mask(mask, dtype, tgt_len)


def _create_4d_causal_attention_mask(
    input_shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    past_key_values_length: int = 0,
    sliding_window: int | None = None,
) -> torch.Tensor | None:
    """Return the causal mask of (batch, queries) without padding; None for a single query."""
    converter = AttentionMaskConverter(is_causal=True, sliding_window=sliding_window)
    keys = past_key_values_length + input_shape[-1]
    return converter.to_causal_4d(input_shape[0], input_shape[-1], keys, dtype, device)
