"""A stored tensor that has not been read: its name, dtype, shape and place in a file."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

Region = tuple[slice, ...]
"""One slice a dimension; what `Checkpoint.read(name, region)` takes."""

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "C128": 128,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits per element of each dtype code. The codes are those of the safetensors format (0.8), plus C128."""

TORCH_NAMES: dict[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64", "C128": "complex128",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip
"""The name that torch gives each dtype code; codes without one (F6) can be listed but not read."""


def torch_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that torch gives a stored one: it counts two F4 in a byte as one element of the last dimension.

    The shape stays where torch has no such tensor: an odd number of F4 in a row.
    """
    if dtype != "F4" or not shape or shape[-1] % 2:
        return shape
    return (*shape[:-1], shape[-1] // 2)


def stored_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that the formats give a tensor of torch's."""
    return (*shape[:-1], 2 * shape[-1]) if dtype == "F4" and shape else shape


class Span(NamedTuple):
    """A half-open range of bytes in a file."""

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A stored tensor that has not been read: name, dtype, shape, and the place of its bytes.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> ref = shardload.open_checkpoint("tiny").tensors["weight"]
        >>> ref.dtype, ref.shape, ref.shard, ref.nbytes
        ('F32', (2, 4), 'model.safetensors', 32)

    `dtype` is a code of `DTYPE_BITS`. `shard` is the file's name relative to the checkpoint's root. `span` counts
    bytes from the start of that file. `strides` (elements) is None for a C-contiguous tensor; a pickle may store
    others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    span: Span
    strides: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements, packed; `span.nbytes` differs from it for a strided tensor."""
        if self.strides is None:
            return (
                self.span.stop - self.span.start
            )  # every format checks that the span is as long as the elements
        return (self.numel * DTYPE_BITS[self.dtype] + 7) // 8

    @property
    def is_floating(self) -> bool:
        """Whether the elements are floating point of 16 bits or more: the only ones that `dtype=` casts."""
        return self.dtype in {"F16", "BF16", "F32", "F64"}


def is_mapped(tensor: object) -> bool:
    """Whether a stored tensor can be a view of its mapped file: one piece, with aligned elements."""
    return isinstance(tensor, TensorRef) and (
        tensor.span.start == tensor.span.stop
        or tensor.span.start % max(DTYPE_BITS[tensor.dtype] // 8, 1) == 0
    )
