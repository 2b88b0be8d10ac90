"""Stored tables that every model computes for itself: rotary frequencies, position numbers, causal masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.board import Link

if TYPE_CHECKING:
    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily

_TABLES = frozenset({
    "inv_freq", "original_inv_freq", "position_ids", "freqs", "freqs_cis", "cos_cached", "sin_cached",
    "masked_bias", "relative_position_index", "relative_coords_table", "attn_mask", "attention_mask",
    "causal_mask", "tril",
})  # fmt: skip


def drop_recomputed(board: Board) -> None:
    """Drop stored tables that the model computes: a link without a family of the model."""
    for family in list(board.stored):
        if is_recomputed(family):
            board.add(Link("drop", (family,), (), confidence=0.99))


def is_recomputed(family: KeyFamily) -> bool:
    """Whether a family is such a table, by its name, or a square mask that is called `bias`."""
    leaf = family.segments[-1]
    shape = family.shape or ()
    mask = leaf == "bias" and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return leaf in _TABLES or mask
