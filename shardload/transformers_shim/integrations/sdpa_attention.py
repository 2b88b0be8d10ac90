"""`transformers.integrations.sdpa_attention`: attention by torch's fused kernel, for code since 4.48."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from shardload.transformers_shim._missing import OF_A_FORWARD, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

_HARMLESS = OF_A_FORWARD - {"head_mask"}


def repeat_kv(hidden_states: torch.Tensor, n_rep: int) -> torch.Tensor:
    """Return (batch, key heads, length, size) with every head repeated `n_rep` times, copies side by side."""
    return hidden_states if n_rep == 1 else hidden_states.repeat_interleave(n_rep, dim=1)


def sdpa_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return (output (batch, queries, heads, size), None); arguments are (batch, heads, length, size).

    Key heads are repeated to the number of query heads. Without a mask several queries attend causally, unless
    `is_causal` or the module's own `is_causal` is False. `position_bias` is added to the scores. An argument that
    torch's kernel can't compute with (`softcap`, `s_aux`, or one that is not known) is refused by name.
    """
    _refuse_what_is_not_computed(kwargs, attention_mask, key.shape[-2])
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if attention_mask is not None and attention_mask.dim() == 4:
        attention_mask = attention_mask[..., : key.shape[-2]]
    wanted = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_causal = bool(query.shape[2] > 1 and attention_mask is None and wanted)
    if position_bias is not None:
        attention_mask = _biased(position_bias, attention_mask, is_causal, query, key)
        is_causal = False
    output = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=is_causal,
    )
    return output.transpose(1, 2).contiguous(), None


def _biased(
    bias: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    query: torch.Tensor,
    key: torch.Tensor,
) -> torch.Tensor:
    """Return the additive mask with the values of `bias` where a query may attend."""
    if mask is not None and mask.dtype != torch.bool:
        return bias + mask
    if mask is None and not is_causal:
        return bias
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    return torch.where(mask, bias, torch.finfo(key.dtype).min)


def _refuse_what_is_not_computed(given: Mapping[str, Any], mask: torch.Tensor | None, keys: int) -> None:
    """Refuse the arguments that the kernel has no place for; a window is in the mask, or wider than the keys."""
    window = given.get("sliding_window")
    is_masked = window is None or mask is not None or (isinstance(window, int) and keys <= window)
    refuse_unknown("sdpa_attention_forward", given, _HARMLESS | ({"sliding_window"} if is_masked else set()))
