"""Tensors that rules make of stored ones, known from headers alone.

A part, a transpose or a row of one stored tensor is a place in its file again: a TensorRef with another span and
other strides, read as a view. Only joined tensors (`Joined`) have to be copied. A view of a joined tensor becomes a
join of views of its parts, and parts that lie side by side in one stored tensor become one view again: a map
followed by its inverse gives back the header that it started from.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from shardload.errors import UnsupportedError
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Shape = tuple[int, ...]
_FLOATING = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True, slots=True)
class Filled:
    """Elements that no file holds; each of them is `value`."""

    dtype: str
    shape: Shape
    value: float = 0


@dataclass(frozen=True, slots=True)
class Joined:
    """A tensor joined from parts along one dimension; loading it copies them.

    It has the attributes of a TensorRef that describe a tensor: name, dtype (a code), shape, shard, nbytes.
    """

    dtype: str
    shape: Shape
    dim: int
    parts: tuple[Derived | Filled, ...]

    @property
    def name(self) -> str:
        """The names of the stored tensors in it; only the first and the last where there are many."""
        names = list(dict.fromkeys(ref.name for ref in leaves(self)))
        return " + ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]} ({len(names)} tensors)"

    @property
    def shard(self) -> str:
        """The file that holds its first part."""
        return next((ref.shard for ref in leaves(self)), "")

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the joined tensor."""
        return (self.numel * DTYPE_BITS[self.dtype] + 7) // 8

    @property
    def is_floating(self) -> bool:
        """Whether the elements are floating point of 16 bits or more, which are the ones that `dtype=` casts."""
        return self.dtype in _FLOATING


Derived = TensorRef | Joined
"""A tensor of the model's side: a view of a stored one, or several that are joined."""


def leaves(tensor: Derived | Filled) -> Iterator[TensorRef]:
    """Yield the views of stored tensors that a tensor consists of."""
    if isinstance(tensor, TensorRef):
        yield tensor
    elif isinstance(tensor, Joined):
        for part in tensor.parts:
            yield from leaves(part)


def stored_as(name: str, tensor: Derived) -> TensorRef:
    """Return the ref that a tensor would have if it were stored whole under `name`; its file is ""."""
    return TensorRef(name, tensor.dtype, tensor.shape, "", Span(0, tensor.nbytes))


def narrowed(tensor: Derived | Filled, dim: int, start: int, length: int) -> Derived | Filled:
    """Return `length` entries of one dimension, from `start`, as `torch.narrow` does."""
    size = tensor.shape[dim]
    if not (0 <= start <= start + length <= size):
        raise ValueError(f"{start}:{start + length} is outside 0:{size}")
    if length == size:
        return tensor
    shape = (*tensor.shape[:dim], length, *tensor.shape[dim + 1 :])
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, shape, tensor.value)
    if isinstance(tensor, TensorRef):
        if dim == 0 and tensor.strides is None and DTYPE_BITS[tensor.dtype] % 8 == 0:
            row = tensor.span.nbytes // size
            span = Span(tensor.span.start + start * row, tensor.span.start + (start + length) * row)
            return TensorRef(tensor.name, tensor.dtype, shape, tensor.shard, span)
        strides = strides_of(tensor)
        return strided_view(tensor, shape, strides, start * strides[dim])
    if dim != tensor.dim:
        return join([narrowed(part, dim, start, length) for part in tensor.parts], tensor.dim)
    kept = []
    at = 0
    for part in tensor.parts:
        low, high = max(start - at, 0), min(start + length - at, part.shape[dim])
        if low < high:
            kept.append(narrowed(part, dim, low, high - low))
        at += part.shape[dim]
    return join(kept, dim) if kept else Filled(tensor.dtype, shape)


def transposed(tensor: Derived | Filled, first: int, second: int) -> Derived | Filled:
    """Return the tensor with two dimensions exchanged."""
    order = list(range(len(tensor.shape)))
    order[first], order[second] = order[second], order[first]
    shape = tuple(tensor.shape[dim] for dim in order)
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, shape, tensor.value)
    if isinstance(tensor, TensorRef):
        strides = strides_of(tensor)
        return strided_view(tensor, shape, tuple(strides[dim] for dim in order), 0)
    return join([transposed(part, first, second) for part in tensor.parts], order.index(tensor.dim))


def unsqueezed(tensor: Derived | Filled, dim: int) -> Derived | Filled:
    """Return the tensor with a dimension of size 1 before `dim`."""
    shape = (*tensor.shape[:dim], 1, *tensor.shape[dim:])
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, shape, tensor.value)
    if isinstance(tensor, TensorRef):
        if tensor.strides is None:
            return TensorRef(tensor.name, tensor.dtype, shape, tensor.shard, tensor.span)
        strides = tensor.strides
        own = strides[dim] * tensor.shape[dim] if dim < len(strides) else 1
        return strided_view(tensor, shape, (*strides[:dim], own, *strides[dim:]), 0)
    return join([unsqueezed(part, dim) for part in tensor.parts], tensor.dim + (dim <= tensor.dim))


def entries(tensor: Derived | Filled, dim: int) -> list[Derived | Filled]:
    """Return the entries of a dimension in order, each without that dimension, as `torch.unbind` does."""
    if isinstance(tensor, Joined) and tensor.dim == dim:
        return [entry for part in tensor.parts for entry in entries(part, dim)]
    return [squeezed(narrowed(tensor, dim, index, 1), dim) for index in range(tensor.shape[dim])]


def squeezed(tensor: Derived | Filled, dim: int) -> Derived | Filled:
    """Return the tensor without a dimension, whose size is 1."""
    shape = (*tensor.shape[:dim], *tensor.shape[dim + 1 :])
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, shape, tensor.value)
    if isinstance(tensor, TensorRef):
        if tensor.strides is None:
            return TensorRef(tensor.name, tensor.dtype, shape, tensor.shard, tensor.span)
        return strided_view(tensor, shape, (*tensor.strides[:dim], *tensor.strides[dim + 1 :]), 0)
    # A dimension of size 1 is never the one that is joined along, so the parts lie along another.
    return join([squeezed(part, dim) for part in tensor.parts], tensor.dim - (dim < tensor.dim))


def join(parts: Sequence[Derived | Filled], dim: int) -> Derived | Filled:
    """Return parts joined along one dimension; neighbours in one stored tensor become one view again."""
    flat: list[Derived | Filled] = []
    for part in parts:
        nested = part.parts if isinstance(part, Joined) and part.dim == dim else (part,)
        for piece in nested:
            one = _merged(flat[-1], piece, dim) if flat else None
            if one is None:
                flat.append(piece)
            else:
                flat[-1] = one
    if len(flat) > 1:
        kept = [piece for piece in flat if piece.shape[dim]]
        flat = kept or flat[:1]
    if len(flat) == 1:
        return flat[0]
    first = flat[0]
    total = sum(piece.shape[dim] for piece in flat)
    return Joined(
        _common([piece.dtype for piece in flat]),
        (*first.shape[:dim], total, *first.shape[dim + 1 :]),
        dim,
        tuple(flat),
    )


def _common(dtypes: Sequence[str]) -> str:
    """Return the dtype that holds the values of all; parts are cast to it when they are copied together."""
    kinds = set(dtypes)
    if len(kinds) == 1 or not kinds <= _FLOATING:
        return dtypes[0]
    return "F32" if kinds == {"F16", "BF16"} else max(kinds, key=DTYPE_BITS.__getitem__)


def as_view(tensor: Derived) -> TensorRef | None:
    """Return the one contiguous view that covers a tensor, or None where its parts have to be copied together.

    A TensorRef is its own view. The parts of a joined tensor are one view where they lie packed, one behind the other,
    in one file; the view has the name of the first part. Parts at equal distances would be a strided view: those
    are copied, because kernels that take all experts in one tensor need it contiguous.
    """
    if isinstance(tensor, TensorRef):
        return tensor
    if tensor.dim == 0 and all(isinstance(part, TensorRef) and part.strides is None for part in tensor.parts):
        return _packed(tensor)
    view = _one_view(tensor)
    return view if view is not None and view.strides is None else None


def _packed(tensor: Joined) -> TensorRef | None:
    """Return the view that covers contiguous parts that are joined along dimension 0, of which there may be many."""
    refs = [part for part in tensor.parts if isinstance(part, TensorRef)]
    stop = refs[0].span.start
    if DTYPE_BITS[refs[0].dtype] % 8:
        return None
    for ref in refs:
        if (
            ref.span.start != stop
            or ref.shard != refs[0].shard
            or ref.dtype != refs[0].dtype
            or not ref.numel
        ):
            return None
        stop = ref.span.stop
    return TensorRef(refs[0].name, refs[0].dtype, tensor.shape, refs[0].shard, Span(refs[0].span.start, stop))


def _one_view(tensor: Derived | Filled) -> TensorRef | None:
    if not isinstance(tensor, Joined):
        return tensor if isinstance(tensor, TensorRef) else None
    whole = _one_view(tensor.parts[0])
    for part in tensor.parts[1:]:
        view = _one_view(part)
        if whole is None or view is None:
            return None
        whole = _side_by_side(whole, view, tensor.dim)
    return whole


def _merged(first: Derived | Filled, second: Derived | Filled, dim: int) -> Derived | Filled | None:
    if isinstance(first, Filled) and isinstance(second, Filled) and first.value == second.value:
        total = first.shape[dim] + second.shape[dim]
        return Filled(first.dtype, (*first.shape[:dim], total, *first.shape[dim + 1 :]), first.value)
    if isinstance(first, TensorRef) and isinstance(second, TensorRef) and first.name == second.name:
        return _side_by_side(first, second, dim)
    return None


def _side_by_side(first: TensorRef, second: TensorRef, dim: int) -> TensorRef | None:
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
