"""Runs code that moves tensors about (views, cuts, joins) on headers: each call of torch becomes one on refs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload.errors import UnsupportedError
from shardload.keymap.derived import (
    Derived,
    Filled,
    entries,
    join,
    narrowed,
    squeezed,
    transposed,
    unsqueezed,
)
from shardload.keymap.reshaped import permuted, reshaped
from shardload.tensor_ref import TORCH_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

aten = torch.ops.aten
_META = torch.device("meta")
Tensor = Derived | Filled


class TracedTensor(torch.Tensor):
    """A tensor without memory that stands for a ref; what torch does with it is done with the ref.

        >>> import torch
        >>> from shardload import open_checkpoint
        >>> from shardload.keymap.traced import TracedTensor
        >>> torch.save({"gate": torch.zeros(2, 3), "up": torch.zeros(2, 3)}, "model.bin")
        >>> traced = [TracedTensor(ref) for ref in open_checkpoint("model.bin").tensors.values()]
        >>> whole = torch.cat([tensor.t() for tensor in traced], dim=1).ref
        >>> whole.shape, whole.name
        ((3, 4), 'gate + up')

    Raises UnsupportedError, by the name of the operation, for one that computes: no header can state its result.
    """

    ref: Tensor

    def __new__(cls, ref: Tensor) -> Self:
        """Return a tensor that stands for a ref; a packed format, of which torch has no dtype, stands as bytes."""
        dtype = getattr(torch, TORCH_NAMES.get(ref.dtype, "uint8"), torch.uint8)
        made = torch.Tensor._make_wrapper_subclass(cls, ref.shape, dtype=dtype, device=_META)
        made.ref = ref
        return made

    def __init__(self, ref: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Do on refs what `func` does on tensors."""
        moved = _OPERATIONS.get(func)
        if moved is None or (kwargs and kwargs.keys() - {"memory_format", "implicit"}):
            raise UnsupportedError(
                f"{func} computes values, and headers say nothing of values",
                cure="load the checkpoint with the library that converts it, save it there, and load that",
            )
        result = moved(*(_ref(each) for each in args))
        return list(map(cls, result)) if isinstance(result, list) else cls(result)


def _ref(value: Any) -> Any:
    if isinstance(value, TracedTensor):
        return value.ref
    if isinstance(value, (list, tuple)):
        return [_ref(each) for each in value]
    return value


def _same(ref: Tensor) -> Tensor:
    return ref


def _reshaped(ref: Tensor, shape: Sequence[int]) -> Tensor:
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    total = 1
    for size in ref.shape:
        total *= size
    return reshaped(ref, [total // known if size == -1 and known else size for size in shape])


def _squeezed(ref: Tensor, dims: int | Sequence[int] | None = None) -> Tensor:
    count = len(ref.shape)
    wanted = range(count) if dims is None else [dims] if isinstance(dims, int) else dims
    for dim in sorted({dim % count for dim in wanted} if count else (), reverse=True):
        if ref.shape[dim] == 1:
            ref = squeezed(ref, dim)
    return ref


def _unsqueezed(ref: Tensor, dim: int) -> Tensor:
    return unsqueezed(ref, dim % (len(ref.shape) + 1))


def _transposed(ref: Tensor, first: int = 0, second: int = 1) -> Tensor:
    count = len(ref.shape)
    return transposed(ref, first % count, second % count) if count > 1 else ref


def _sliced(
    ref: Tensor, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> Tensor:
    dim %= len(ref.shape)
    places = range(ref.shape[dim])[start:stop:step]
    if step == 1:
        return narrowed(ref, dim, places.start, len(places))
    return join([narrowed(ref, dim, place, 1) for place in places], dim)


def _selected(ref: Tensor, dim: int, index: int) -> Tensor:
    dim %= len(ref.shape)
    return squeezed(narrowed(ref, dim, index % ref.shape[dim], 1), dim)


def _cut(ref: Tensor, sizes: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    dim %= len(ref.shape)
    total = ref.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)] or [0]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [narrowed(ref, dim, start, size) for start, size in zip(starts, sizes, strict=True)]


def _joined(refs: Sequence[Tensor], dim: int = 0) -> Tensor:
    dim %= len(refs[0].shape)
    across = {(*ref.shape[:dim], *ref.shape[dim + 1 :]) for ref in refs}
    if len(across) > 1 or len({len(ref.shape) for ref in refs}) > 1:
        raise ValueError(f"tensors of shapes {_shapes(refs)} can't be joined along dimension {dim}")
    return join(refs, dim)


def _shapes(refs: Sequence[Tensor]) -> str:
    return " and ".join(str(list(shape)) for shape in dict.fromkeys(ref.shape for ref in refs))


def _stacked(refs: Sequence[Tensor], dim: int = 0) -> Tensor:
    dim %= len(refs[0].shape) + 1
    if len({ref.shape for ref in refs}) > 1:
        raise ValueError(f"tensors of shapes {_shapes(refs)} can't be stacked")
    return join([unsqueezed(ref, dim) for ref in refs], dim)


def _entries(ref: Tensor, dim: int = 0) -> list[Tensor]:
    return entries(ref, dim % len(ref.shape))


_OPERATIONS: dict[Any, Callable[..., Any]] = {
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.view.default: _reshaped,
    aten.reshape.default: _reshaped,
    aten._unsafe_view.default: _reshaped,
    aten.squeeze.default: _squeezed,
    aten.squeeze.dim: _squeezed,
    aten.squeeze.dims: _squeezed,
    aten.unsqueeze.default: _unsqueezed,
    aten.t.default: _transposed,
    aten.transpose.int: _transposed,
    aten.permute.default: permuted,
    aten.slice.Tensor: _sliced,
    aten.select.int: _selected,
    aten.split.Tensor: _cut,
    aten.split_with_sizes.default: _cut,
    aten.unbind.int: _entries,
    aten.cat.default: _joined,
    aten.stack.default: _stacked,
}
