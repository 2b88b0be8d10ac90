"""Views of one stored tensor: a part, a transpose or a row of it is another header with the same bytes."""

from __future__ import annotations

from math import prod

from shardload.errors import UnsupportedError
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

Shape = tuple[int, ...]


def narrowed_view(ref: TensorRef, dim: int, start: int, length: int) -> TensorRef:
    """Return `length` entries of one dimension, from `start`, as `torch.narrow` does."""
    shape = (*ref.shape[:dim], length, *ref.shape[dim + 1 :])
    if dim == 0 and ref.strides is None and DTYPE_BITS[ref.dtype] % 8 == 0:
        row = ref.span.nbytes // ref.shape[0]
        span = Span(ref.span.start + start * row, ref.span.start + (start + length) * row)
        return TensorRef(ref.name, ref.dtype, shape, ref.shard, span)
    strides = strides_of(ref)
    return strided_view(ref, shape, strides, start * strides[dim])


def transposed_view(ref: TensorRef, first: int, second: int) -> TensorRef:
    """Return the view with two dimensions exchanged."""
    order = list(range(len(ref.shape)))
    order[first], order[second] = order[second], order[first]
    strides = strides_of(ref)
    shape = tuple(ref.shape[dim] for dim in order)
    return strided_view(ref, shape, tuple(strides[dim] for dim in order), 0)


def unsqueezed_view(ref: TensorRef, dim: int) -> TensorRef:
    """Return the view with a dimension of size 1 before `dim`."""
    shape = (*ref.shape[:dim], 1, *ref.shape[dim:])
    if ref.strides is None:
        return TensorRef(ref.name, ref.dtype, shape, ref.shard, ref.span)
    strides = ref.strides
    own = strides[dim] * ref.shape[dim] if dim < len(strides) else 1
    return strided_view(ref, shape, (*strides[:dim], own, *strides[dim:]), 0)


def squeezed_view(ref: TensorRef, dim: int) -> TensorRef:
    """Return the view without a dimension, whose size is 1."""
    shape = (*ref.shape[:dim], *ref.shape[dim + 1 :])
    if ref.strides is None:
        return TensorRef(ref.name, ref.dtype, shape, ref.shard, ref.span)
    return strided_view(ref, shape, (*ref.strides[:dim], *ref.strides[dim + 1 :]), 0)


def reshaped_view(ref: TensorRef, shape: Shape) -> TensorRef:
    """Return a contiguous view in another shape."""
    return TensorRef(ref.name, ref.dtype, shape, ref.shard, ref.span)


def side_by_side(first: TensorRef, second: TensorRef, dim: int) -> TensorRef | None:
    """Return the view that covers two views of one file where the second continues the first along `dim`, or None."""
    if first.shard != second.shard or first.dtype != second.dtype or not first.numel or not second.numel:
        return None
    bits = DTYPE_BITS[first.dtype]
    distance = second.span.start - first.span.start
    if bits % 8 or distance <= 0 or distance % (bits // 8):
        return None
    distance //= bits // 8
    one, other = strides_of(first), strides_of(second)
    step = one[dim] if first.shape[dim] > 1 else distance
    if distance != step * first.shape[dim] or (second.shape[dim] > 1 and other[dim] != step):
        return None
    for at, size in enumerate(first.shape):
        if at != dim and size > 1 and one[at] != other[at]:
            return None
    total = first.shape[dim] + second.shape[dim]
    shape = (*first.shape[:dim], total, *first.shape[dim + 1 :])
    return strided_view(first, shape, (*one[:dim], step, *one[dim + 1 :]), 0)


def strides_of(ref: TensorRef) -> Shape:
    """Return the strides of a ref, in elements."""
    return contiguous_strides(ref.shape) if ref.strides is None else ref.strides


def contiguous_strides(shape: Shape) -> Shape:
    """Return the strides of a C-contiguous tensor, in elements."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * max(shape[dim + 1], 1)
    return tuple(strides)


def strided_view(ref: TensorRef, shape: Shape, strides: Shape, offset: int) -> TensorRef:
    """Return a view of a stored tensor; `offset` and `strides` in elements."""
    bits = DTYPE_BITS[ref.dtype]
    packed = all(
        size == 1 or stride == wanted
        for size, stride, wanted in zip(shape, strides, contiguous_strides(shape), strict=True)
    )
    if bits % 8 and (offset or not packed or prod(shape) != ref.numel):
        raise UnsupportedError(
            f"{ref.name} is stored as {ref.dtype}, {bits} bits an element: it can be renamed, not cut or transposed",
            where=ref.shard,
        )
    if bits % 8:
        return TensorRef(ref.name, ref.dtype, shape, ref.shard, ref.span)
    start = ref.span.start + offset * bits // 8
    if not prod(shape):
        return TensorRef(ref.name, ref.dtype, shape, ref.shard, Span(start, start))
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    span = Span(start, start + extent * bits // 8)
    return TensorRef(ref.name, ref.dtype, shape, ref.shard, span, None if packed else strides)
