"""Dequantise: packed weights, recognised by headers and config, and decoded block by block. No kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.dequantise.gptq import gptq_weights
from shardload.dequantise.scheme import BadValuesError, Scheme, Weight
from shardload.dequantise.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BadValuesError", "Scheme", "Stored", "Weight", "packed_weights"]

_RECOGNISERS: tuple[Callable[[Stored], Iterator[Weight]], ...] = (gptq_weights,)


def packed_weights(stored: Stored) -> list[Weight]:
    """Return the packed weights of a checkpoint that this package can make plain; none of a plain checkpoint.

    Raises CorruptError for parts that do not fit together, UnsupportedError for a variant that is known by name only.
    """
    return [weight for recogniser in _RECOGNISERS for weight in recogniser(stored)]
