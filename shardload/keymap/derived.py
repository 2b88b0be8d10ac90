"""Tensors that rules make of stored ones, known from headers alone.

A part, a transpose or a row of one stored tensor is a place in its file again: a TensorRef with another span and
other strides, read as a view. Only joined tensors (`Joined`) have to be copied. A view of a joined tensor becomes a
join of views of its parts, and parts that lie side by side in one stored tensor become one view again: a map
followed by its inverse gives back the header that it started from. Plain tensors of packed weights (`Dequantised`) are
views too, of a tensor that is stored nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from shardload.keymap.dequantised import Dequantised
from shardload.keymap.views import (
    Shape,
    narrowed_view,
    side_by_side,
    squeezed_view,
    transposed_view,
    unsqueezed_view,
)
from shardload.tensor_ref import DTYPE_BITS, Span, TensorRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

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


Derived = TensorRef | Joined | Dequantised
"""A tensor of the model's side: a view of a stored one, several that are joined, or a packed weight made plain."""


def pieces(tensor: Derived | Filled) -> Iterator[TensorRef | Dequantised]:
    """Yield the views, of stored tensors and of packed weights, that a tensor consists of."""
    if isinstance(tensor, Joined):
        for part in tensor.parts:
            yield from pieces(part)
    elif not isinstance(tensor, Filled):
        yield tensor


def leaves(tensor: Derived | Filled) -> Iterator[TensorRef]:
    """Yield the views of stored tensors that a tensor is made of."""
    for piece in pieces(tensor):
        if isinstance(piece, TensorRef):
            yield piece
        else:
            yield from piece.stored.values()


def reading_places(tensor: Derived) -> Iterator[tuple[TensorRef, int]]:
    """Yield the views of stored tensors, each with the place in its file at whose turn a load reads it.

    The parts of a packed weight in a file are read together, with the largest: scales may lie behind all weights.
    """
    for piece in pieces(tensor):
        if isinstance(piece, TensorRef):
            yield piece, piece.span.start
            continue
        first: dict[str, int] = {}
        for ref in piece.stored.values():
            yield ref, first.setdefault(ref.shard, ref.span.start)


def _viewed(
    tensor: TensorRef | Dequantised, operation: Callable[..., TensorRef], *arguments: Any
) -> TensorRef | Dequantised:
    return (
        operation(tensor, *arguments) if isinstance(tensor, TensorRef) else tensor.seen(operation, *arguments)
    )


def stored_as(name: str, tensor: Derived) -> TensorRef:
    """Return the ref that a tensor would have if it were stored whole under `name`; its file is ""."""
    return TensorRef(name, tensor.dtype, tensor.shape, "", Span(0, tensor.nbytes))


def decoded_to(tensor: Derived | Filled, code: str) -> Derived | Filled:
    """Return the tensor with its packed weights decoded to the dtype of a code; stored tensors keep theirs."""
    if isinstance(tensor, Dequantised):
        return tensor if tensor.dtype == code else tensor.decoded_to(code)
    if not isinstance(tensor, Joined) or not any(isinstance(piece, Dequantised) for piece in pieces(tensor)):
        return tensor
    parts = tuple(decoded_to(part, code) for part in tensor.parts)
    return Joined(_common([part.dtype for part in parts]), tensor.shape, tensor.dim, parts)


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
    if not isinstance(tensor, Joined):
        return _viewed(tensor, narrowed_view, dim, start, length)
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
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, tuple(tensor.shape[dim] for dim in order), tensor.value)
    if not isinstance(tensor, Joined):
        return _viewed(tensor, transposed_view, first, second)
    return join([transposed(part, first, second) for part in tensor.parts], order.index(tensor.dim))


def unsqueezed(tensor: Derived | Filled, dim: int) -> Derived | Filled:
    """Return the tensor with a dimension of size 1 before `dim`."""
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, (*tensor.shape[:dim], 1, *tensor.shape[dim:]), tensor.value)
    if not isinstance(tensor, Joined):
        return _viewed(tensor, unsqueezed_view, dim)
    return join([unsqueezed(part, dim) for part in tensor.parts], tensor.dim + (dim <= tensor.dim))


def entries(tensor: Derived | Filled, dim: int) -> list[Derived | Filled]:
    """Return the entries of a dimension in order, each without that dimension, as `torch.unbind` does."""
    if isinstance(tensor, Joined) and tensor.dim == dim:
        return [entry for part in tensor.parts for entry in entries(part, dim)]
    return [squeezed(narrowed(tensor, dim, index, 1), dim) for index in range(tensor.shape[dim])]


def squeezed(tensor: Derived | Filled, dim: int) -> Derived | Filled:
    """Return the tensor without a dimension, whose size is 1."""
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, (*tensor.shape[:dim], *tensor.shape[dim + 1 :]), tensor.value)
    if not isinstance(tensor, Joined):
        return _viewed(tensor, squeezed_view, dim)
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

    A TensorRef is its own view, and a packed weight has none. The parts of a joined tensor are one view where they lie
    packed, one behind the other, in one file; the view has the name of the first part. Parts at equal distances would
    be a strided view: those are copied, because kernels that take all experts in one tensor need it contiguous.
    """
    if isinstance(tensor, TensorRef):
        return tensor
    if isinstance(tensor, Dequantised):
        return None
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
        whole = side_by_side(whole, view, tensor.dim)
    return whole


def _merged(first: Derived | Filled, second: Derived | Filled, dim: int) -> Derived | Filled | None:
    if isinstance(first, Filled) and isinstance(second, Filled) and first.value == second.value:
        total = first.shape[dim] + second.shape[dim]
        return Filled(first.dtype, (*first.shape[:dim], total, *first.shape[dim + 1 :]), first.value)
    if isinstance(first, TensorRef) and isinstance(second, TensorRef) and first.name == second.name:
        return side_by_side(first, second, dim)
    if isinstance(first, Dequantised) and isinstance(second, Dequantised) and first.weight == second.weight:
        view = side_by_side(first.view, second.view, dim)
        return None if view is None else Dequantised(view, first.weight)
    return None
