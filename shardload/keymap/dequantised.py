"""Dequantised: the plain tensor of a packed weight, or a view of one, known from headers alone.

It is seen as if the plain weight were stored: `view` is a header in a file that does not exist. What a view needs of
the packed parts follows from the bytes that it covers, so every operation on views works for packed weights too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from shardload.keymap.views import narrowed_view, strides_of, transposed_view
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shardload.dequantise import Weight


@dataclass(frozen=True, slots=True)
class Dequantised:
    """A tensor that is computed from the parts of a packed weight.

    It has the attributes of a TensorRef that describe a tensor: name (of the packed numbers), dtype (a code), shape,
    shard, nbytes.
    """

    view: TensorRef
    weight: Weight

    @classmethod
    def of(cls, weight: Weight, code: str) -> Dequantised:
        """Return the plain tensor of a weight in a dtype."""
        main = weight.parts[0][1]
        nbytes = prod(weight.shape) * DTYPE_BITS[code] // 8
        view = TensorRef(main.name, code, weight.shape, main.shard, Span(0, nbytes))
        last = len(weight.shape) - 1
        return cls(transposed_view(view, last - 1, last) if weight.turned else view, weight)

    @property
    def name(self) -> str:
        """The name of the stored tensor with the packed numbers."""
        return self.view.name

    @property
    def dtype(self) -> str:
        """The code of the dtype that is computed."""
        return self.view.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the plain tensor."""
        return self.view.shape

    @property
    def shard(self) -> str:
        """The file that holds the packed numbers."""
        return self.view.shard

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.view.numel

    @property
    def nbytes(self) -> int:
        """Bytes of the plain tensor."""
        return self.view.nbytes

    @property
    def is_floating(self) -> bool:
        """Whether the elements are floating point of 16 bits or more: always."""
        return True

    @property
    def stored(self) -> dict[str, TensorRef]:
        """The stored bytes that the tensor is computed from, by role."""
        if not self.numel:
            return {}
        block = block_of(self.view, self.weight)
        cuts = self.weight.scheme.cuts(block.rows, block.columns)
        return {role: _cut(ref, cuts.get(role, ())) for role, ref in self.weight.parts}

    def decoded_to(self, code: str) -> Dequantised:
        """Return the same tensor in the dtype of a code."""
        start = self.view.span.start * DTYPE_BITS[code] // DTYPE_BITS[self.dtype]
        length = self.view.span.nbytes * DTYPE_BITS[code] // DTYPE_BITS[self.dtype]
        return replace(self, view=replace(self.view, dtype=code, span=Span(start, start + length)))

    def seen(self, operation: Callable[..., TensorRef], *arguments: Any) -> Dequantised:
        """Return the tensor that an operation on views makes of this one."""
        return replace(self, view=operation(self.view, *arguments))


def _cut(ref: TensorRef, cuts: tuple[tuple[int, int, int], ...]) -> TensorRef:
    for dim, start, length in cuts:
        if length != ref.shape[dim]:
            ref = narrowed_view(ref, dim, start, length)
    return ref


@dataclass(frozen=True, slots=True)
class Block:
    """The block of a packed weight that a view needs; `offset` and `strides` are those of the view in the block."""

    rows: range
    columns: range
    offset: int
    strides: tuple[int, ...]


def block_of(view: TensorRef, weight: Weight) -> Block:
    """Return the smallest block that can be decoded alone and holds a view of the plain weight, which is not empty."""
    width, whole = weight.columns, range(weight.columns)
    strides = strides_of(view)
    first = view.span.start * 8 // DTYPE_BITS[view.dtype]
    steps = [(size - 1, stride) for size, stride in zip(view.shape, strides, strict=True) if size > 1]
    last = first + sum(count * stride for count, stride in steps)
    reach = first % width + sum(count * stride for count, stride in steps if stride < width)
    rows, columns = range(first // width, last // width + 1), whole
    if reach < width and all(stride < width or stride % width == 0 for _, stride in steps):
        columns = range(first % width, reach + 1)
    rows, columns = weight.scheme.window(rows, columns)
    inside = strides
    if len(columns) < width:
        inside = tuple(s // width * len(columns) if s >= width else s for s in strides)
    offset = (first // width - rows.start) * len(columns) + first % width - columns.start
    return Block(rows, columns, offset, inside)
