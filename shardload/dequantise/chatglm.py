"""ChatGLM's own quantisation: whole numbers of 4 or 8 bits with one scale a row.

Source: the code of chatglm-6b-int4 and chatglm2-6b-int4. The first of two numbers in a byte is in its high bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.dequantise.scaled import Scaled
from shardload.dequantise.scheme import Weight
from shardload.dequantise.stored import require, reshaped
from shardload.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload.dequantise.stored import Stored


def chatglm_weights(stored: Stored) -> Iterator[Weight]:
    """Yield the weights that ChatGLM's code packed. Raises CorruptError for parts that do not fit together."""
    for name, scales in stored.ending("_scale"):
        packed = stored.tensors.get(name)
        if packed is None or packed.dtype != "I8" or len(packed.shape) != 2 or len(scales.shape) != 1:
            continue
        if scales.numel == 1 != packed.shape[0]:
            continue  # compressed-tensors': one for the tensor
        bits = stored.config.get("quantization_bit")
        if bits not in (4, 8):  # of any type
            raise UnsupportedError(
                f"{name} holds numbers of 4 or of 8 bits, and nothing says which",
                where=f"{packed.shard}: {name}",
                cure='name it in config.json: "quantization_bit": 4',
            )
        rows, width = packed.shape[0], packed.shape[1] * 8 // bits
        require(scales, (rows,), "F16 BF16 F32", packed)
        require(packed, packed.shape, "I8", scales)
        scheme = Scaled(f"ChatGLM int{bits}", f"int{bits}", rows, width, (1, width), in_scales_dtype=True)
        parts = (("numbers", packed), ("scales", reshaped(scales, (rows, 1))))
        yield Weight(name, scheme, (rows, width), parts)
