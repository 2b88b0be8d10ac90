"""The kinds of layers that adapters can be attached to, and the look-up of the one that fits a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.layers.attention import Attention, AttentionOutput
from shardload.adapters.layers.conv import Conv
from shardload.adapters.layers.embedding import Embedding
from shardload.adapters.layers.experts import Experts
from shardload.adapters.layers.layer import (
    LAYER_ATTRIBUTES,
    LORA_PARTS,
    Factor,
    Factors,
    LayerKind,
    LoraLayer,
    LoraTerm,
    Reading,
    adapt,
    lora_class,
)
from shardload.adapters.layers.linear import Linear
from shardload.adapters.layers.merged import Merged
from shardload.adapters.layers.quantised import Quantised
from shardload.adapters.layers.rows import Rows
from shardload.adapters.layers.transposed import Transposed

if TYPE_CHECKING:
    from torch import nn

    from shardload.adapters.adapter import LoraEntry

__all__ = [
    "KINDS",
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

KINDS: tuple[LayerKind, ...] = (
    Rows(),
    Merged(),
    AttentionOutput(),
    Linear(),
    Quantised(),
    Transposed(),
    Embedding(),
    Conv(),
    Attention(),
    Experts(),
)
"""All kinds of layers, in the order in which they are tried."""


def kind_of(module: nn.Module, entry: LoraEntry | None = None) -> LayerKind | None:
    """Return the first kind that fits a module, and the stored entry for it if there is one; None for no kind."""
    return next((kind for kind in KINDS if kind.fits(module, entry)), None)
