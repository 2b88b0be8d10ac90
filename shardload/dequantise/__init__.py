"""Dequantise: packed weights, recognised by headers and config, and decoded block by block. No kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.dequantise.awq import awq_weights
from shardload.dequantise.bitsandbytes import eight_bit_weights, four_bit_weights
from shardload.dequantise.chatglm import chatglm_weights
from shardload.dequantise.compressed_tensors import eight_bit_ints, packed_ints
from shardload.dequantise.fp8 import bare_weights, fp8_weights
from shardload.dequantise.gguf_blocks import gguf_weights
from shardload.dequantise.gptq import gptq_weights
from shardload.dequantise.mxfp4 import mxfp4_weights
from shardload.dequantise.scheme import BadValuesError, Scheme, Weight
from shardload.dequantise.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BadValuesError", "Scheme", "Stored", "Weight", "packed_weights"]

_RECOGNISERS: tuple[Callable[[Stored], Iterator[Weight]], ...] = (
    gptq_weights,
    awq_weights,
    fp8_weights,
    bare_weights,
    mxfp4_weights,
    four_bit_weights,
    eight_bit_weights,
    packed_ints,
    eight_bit_ints,
    chatglm_weights,
)


def packed_weights(stored: Stored) -> list[Weight]:
    """Return the packed weights of a checkpoint that this package can make plain; none of a plain checkpoint.

    Raises CorruptError for parts that do not fit together, UnsupportedError for a variant that is known by name only.
    """
    if stored.kinds:
        return list(gguf_weights(stored))
    return [weight for recogniser in _RECOGNISERS for weight in recogniser(stored)]
