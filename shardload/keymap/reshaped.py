"""Derived tensors in other shapes: views where the strides allow it, joins of views where they do not."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from shardload.keymap.derived import (
    Derived,
    Filled,
    Joined,
    entries,
    join,
    narrowed,
    squeezed,
    transposed,
    unsqueezed,
)
from shardload.keymap.views import reshaped_view, strided_view, strides_of
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.keymap.dequantised import Dequantised

Tensor = Derived | Filled


def reshaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the tensor in another shape, with its elements in C order, as `torch.reshape` does."""
    wanted = tuple(shape)
    if tensor.shape == wanted:
        return tensor
    if prod(tensor.shape) != prod(wanted):
        raise ValueError(f"shape {list(wanted)} is invalid for a tensor of shape {list(tensor.shape)}")
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, wanted, tensor.value)
    if not isinstance(tensor, Joined) and _view(tensor).strides is None:
        return (
            reshaped_view(tensor, wanted)
            if isinstance(tensor, TensorRef)
            else tensor.seen(reshaped_view, wanted)
        )
    if not prod(wanted):
        return Filled(tensor.dtype, wanted)
    for dim in reversed(range(len(tensor.shape))):
        if tensor.shape[dim] == 1:
            tensor = squeezed(tensor, dim)
    tensor = _regrouped(tensor, [size for size in wanted if size != 1])
    for dim, size in enumerate(wanted):
        if size == 1:
            tensor = unsqueezed(tensor, dim)
    return tensor


def _regrouped(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the tensor in another shape, where no dimension of either has size 1."""
    for dim, size in enumerate(sizes):
        while tensor.shape[dim] % size:
            tensor = _flattened(tensor, dim)
        if tensor.shape[dim] != size:
            tensor = _unflattened(tensor, dim, size, tensor.shape[dim] // size)
    return tensor


def permuted(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Return the tensor with its dimensions in another order, as `torch.permute` does."""
    now = list(range(len(tensor.shape)))
    for place, dim in enumerate(order):
        at = now.index(dim % len(now))
        if at != place:
            tensor = transposed(tensor, place, at)
            now[place], now[at] = now[at], now[place]
    return tensor


def _flattened(tensor: Tensor, dim: int) -> Tensor:
    """Return the tensor with the dimensions `dim` and `dim + 1` as one."""
    outer, inner = tensor.shape[dim : dim + 2]
    shape = (*tensor.shape[:dim], outer * inner, *tensor.shape[dim + 2 :])
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, shape, tensor.value)
    if isinstance(tensor, Joined):
        if tensor.dim == dim:
            return join([_flattened(part, dim) for part in tensor.parts], dim)
        if tensor.dim != dim + 1:
            at = tensor.dim - (tensor.dim > dim)
            return join([_flattened(part, dim) for part in tensor.parts], at)
    else:
        strides = strides_of(_view(tensor))
        if outer == 1 or inner == 1 or strides[dim] == strides[dim + 1] * inner:
            kept = strides[dim] if inner == 1 else strides[dim + 1]
            return _strided(tensor, shape, (*strides[:dim], kept, *strides[dim + 2 :]))
    return join(entries(tensor, dim), dim)


def _unflattened(tensor: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """Return the tensor with the dimension `dim` as two, of the sizes `outer` and `inner`."""
    shape = (*tensor.shape[:dim], outer, inner, *tensor.shape[dim + 1 :])
    if isinstance(tensor, Filled):
        return Filled(tensor.dtype, shape, tensor.value)
    if not isinstance(tensor, Joined):
        strides = strides_of(_view(tensor))
        both = (strides[dim] * inner, strides[dim])
        return _strided(tensor, shape, (*strides[:dim], *both, *strides[dim + 1 :]))
    if tensor.dim != dim:
        at = tensor.dim + (tensor.dim > dim)
        return join([_unflattened(part, dim, outer, inner) for part in tensor.parts], at)
    sizes = [part.shape[dim] for part in tensor.parts]
    if all(size % inner == 0 for size in sizes):
        parts = zip(tensor.parts, sizes, strict=True)
        return join([_unflattened(part, dim, size // inner, inner) for part, size in parts], dim)
    rows = (narrowed(tensor, dim, row * inner, inner) for row in range(outer))
    return join([unsqueezed(row, dim) for row in rows], dim)


def _view(tensor: TensorRef | Dequantised) -> TensorRef:
    return tensor if isinstance(tensor, TensorRef) else tensor.view


def _strided(
    tensor: TensorRef | Dequantised, shape: tuple[int, ...], strides: tuple[int, ...]
) -> TensorRef | Dequantised:
    if isinstance(tensor, TensorRef):
        return strided_view(tensor, shape, strides, 0)
    return tensor.seen(strided_view, shape, strides, 0)
