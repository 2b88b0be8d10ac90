"""The kinds of layers that take adapters, and the look-up of the kind that fits a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.adapter import RowsEntry
from shardload.adapters.layers.attention import Attention, AttentionOutput
from shardload.adapters.layers.conv import Conv
from shardload.adapters.layers.embedding import Embedding
from shardload.adapters.layers.experts import Experts
from shardload.adapters.layers.layer import (
    LAYER_ATTRIBUTES,
    LORA_PARTS,
    Factor,
    LayerKind,
    LoraLayer,
    Reading,
    adapt,
    lora_class,
)
from shardload.adapters.layers.linear import Linear
from shardload.adapters.layers.merged import Merged
from shardload.adapters.layers.quantised import Quantised
from shardload.adapters.layers.rows import Rows
from shardload.adapters.layers.term import Factors, LoraTerm
from shardload.adapters.layers.transposed import Transposed

if TYPE_CHECKING:
    from torch import nn

    from shardload.adapters.adapter import LoraEntry

__all__ = [
    "LAYER_ATTRIBUTES",
    "LORA_PARTS",
    "Factor",
    "Factors",
    "LayerKind",
    "LoraLayer",
    "LoraTerm",
    "Reading",
    "adapt",
    "kind_of",
    "lora_class",
]

ROWS: LayerKind = Rows()
MERGED: LayerKind = Merged()
KINDS: tuple[LayerKind, ...] = (
    AttentionOutput(),
    Linear(),
    Quantised(),
    Transposed(),
    Embedding(),
    Conv(),
    Attention(),
    Experts(),
)
"""The kinds for an entry with one A and one B, in the order in which they are tried."""


def kind_of(module: nn.Module, entry: LoraEntry | RowsEntry | None = None) -> LayerKind | None:
    """Return the first kind that fits a module and, if given, the stored entry for it; None if no kind does."""
    if isinstance(entry, RowsEntry):
        return ROWS if ROWS.fits(module) else None
    kinds = (MERGED, *KINDS) if entry is not None and entry.merged else KINDS
    return next((kind for kind in kinds if kind.fits(module, entry)), None)
