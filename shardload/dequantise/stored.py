"""Stored: the headers of a checkpoint, and what its config says of their packing, as recognisers ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shardload.errors import CorruptError, UnsupportedError
from shardload.tensor_ref import TensorRef

Read = Callable[["TensorRef"], bytes]
"""Reads the bytes of one small stored tensor."""


@dataclass(frozen=True)
class Stored:
    """The headers of a checkpoint, and `read`.

    `settings` are the quantiser's own, empty where none are known; `config` is config.json. `kinds` are the types of
    packed tensors that a format itself names.
    """

    tensors: Mapping[str, TensorRef]
    settings: Mapping[str, Any]
    read: Read
    config: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The quantiser that the settings name, in small letters; "" where they name none."""
        return str(self.settings.get("quant_method", "")).lower()

    def ending(self, end: str) -> Iterator[tuple[str, TensorRef]]:
        """Yield (what stands before it, header) of each key with this end."""
        for name, ref in self.tensors.items():
            if name.endswith(end):
                yield name[: -len(end)], ref

    def there(self, prefix: str, *names: str) -> tuple[str, ...]:
        """Return which of some names, with what stands before them, are stored."""
        return tuple(name for each in names if (name := f"{prefix}{each}") in self.tensors)

    def part(self, name: str, beside: TensorRef) -> TensorRef:
        """Return the header of a part. Raises CorruptError where it is not stored."""
        ref = self.tensors.get(name)
        if ref is None:
            raise CorruptError(
                f"{beside.name} is packed, and {name} is not stored",
                where=f"{beside.shard}: {beside.name}",
                cure="fetch the checkpoint again: a part of the weight is missing",
            )
        return ref


def require(ref: TensorRef, shape: tuple[int, ...], dtypes: str, of: TensorRef) -> TensorRef:
    """Return a part as it is wanted beside another one. Raises CorruptError for another shape or dtype.

    `dtypes` are codes with spaces between them.
    """
    if ref.shape != shape or ref.dtype not in dtypes.split():
        raise damaged(
            ref,
            f"{ref.name} is {ref.dtype} {list(ref.shape)}; beside {of.name} {list(of.shape)} it has to be "
            f"{dtypes.replace(' ', ' or ')} {list(shape)}",
        )
    if ref.strides is not None:
        raise UnsupportedError(f"{ref.name} is stored transposed", where=f"{ref.shard}: {ref.name}")
    return ref


def damaged(ref: TensorRef, what: str) -> CorruptError:
    """Return the error for a stored part that no packer writes."""
    return CorruptError(
        what,
        where=f"{ref.shard}: {ref.name}",
        cure="fetch the file again; if it stays so, the checkpoint was packed wrongly",
    )


def reshaped(ref: TensorRef, shape: tuple[int, ...], dtype: str | None = None) -> TensorRef:
    """Return the header of the same bytes in another shape, or as another dtype."""
    return TensorRef(ref.name, dtype or ref.dtype, shape, ref.shard, ref.span)


def whole_setting(stored: Stored, name: str, default: int) -> int:
    """Return a whole number of the settings. Raises CorruptError for anything else."""
    value = stored.settings.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise CorruptError(
            f"{name} of the quantisation is no whole number: {str(value)[:80]}", where="config.json"
        )
    return value
