"""`transformers.modeling_flash_attention_utils`: names around flash attention, which needs the package flash-attn."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch.nn import functional
from typing_extensions import TypedDict

__all__ = ["FlashAttentionKwargs"]


class FlashAttentionKwargs(TypedDict, total=False):
    """Keyword arguments of flash attention for sequences that are packed into one row."""

    cu_seq_lens_q: Any
    cu_seq_lens_k: Any
    max_length_q: int | None
    max_length_k: int | None


def _get_unpad_data(attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return (indices of the tokens, cumulative lengths from 0, the longest length) of a padding mask."""
    lengths = attention_mask.sum(dim=-1, dtype=torch.int32)
    places = attention_mask.flatten().nonzero().flatten()
    return places, functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), int(lengths.max())


def _flash_attention_forward(*_args: Any, **_kwargs: Any) -> NoReturn:
    """Raise: flash attention comes from the package flash-attn, which the stand-in does not call."""
    raise ImportError(
        "the code asks for flash attention; choose attn_implementation='eager'", name="flash_attn"
    )


def flash_attn_supports_top_left_mask() -> bool:
    """Return False: flash-attn 2.1 and newer aligns the mask to the bottom right."""
    return False


def is_flash_attn_available(**_options: Any) -> bool:
    """Return False: the stand-in's own attention functions use no flash attention."""
    return False
