"""MXFP4: numbers of 4 bits in blocks of 32, each with a power of two. Source: the checkpoints of gpt-oss.

An expert's matrix is stored as [outputs, blocks, 16 bytes], and the model holds it as [inputs, outputs].
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from shardload.dequantise.scaled import Scaled
from shardload.dequantise.scheme import Weight
from shardload.dequantise.stored import require, reshaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload.dequantise.stored import Stored


def mxfp4_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the weights with `_blocks` and `_scales`. Raises CorruptError for parts that do not fit together."""
    for name, blocks in stored.ending("_blocks"):
        if blocks.dtype != "U8" or len(blocks.shape) < 3 or f"{name}_scales" not in stored.tensors:
            continue
        *before, count, size = blocks.shape
        scales = require(stored.tensors[f"{name}_scales"], (*before, count), "U8", blocks)
        require(blocks, (*before, count, 16), "U8", scales)
        rows, width = prod(before), 2 * count * size
        parts = (
            ("numbers", reshaped(blocks, (rows, width // 2))),
            ("scales", reshaped(scales, (rows, count))),
        )
        scheme = Scaled("MXFP4", "fp4", rows, width, (1, 32))
        yield Weight(name, scheme, (*before, width), parts, turned=True)
