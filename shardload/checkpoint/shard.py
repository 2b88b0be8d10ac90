"""Shard: opens a local weight file and returns its tensors, as views of a mapping (zero copy) or as copies."""

from __future__ import annotations

import ctypes
import os
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

import torch

from shardload._system.file_errors import unreadable
from shardload._system.file_identity import FileIdentity, file_identity
from shardload._system.file_mapping import Buffer, forget_pages, map_file, private_memory
from shardload._system.fresh_pages import FreshPages
from shardload.errors import CorruptError, UnsupportedError, Wording
from shardload.keymap.derived import reading_places
from shardload.tensor_ref import TORCH_NAMES, TensorRef, torch_shape

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from shardload.keymap import Derived

DTYPES: dict[str, torch.dtype] = {
    code: getattr(torch, name) for code, name in TORCH_NAMES.items() if hasattr(torch, name)
}
"""The torch dtype of each dtype code that this torch supports."""

CODES: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}

Mappings = WeakValueDictionary[tuple[str, FileIdentity], Buffer]
"""Mappings in use, by the path and identity of the mapped file."""


class AnyShard(Protocol):
    """An open weight file, mapped, read or streamed, used as a `with` block."""

    def __enter__(self) -> Self:
        """Open it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """Return the stored tensor in its stored dtype; its storage covers this tensor alone."""

    def release(self, ref: TensorRef, first: int = 0, stop: int | None = None) -> None:
        """Release the pages that hold only these bytes of `ref`, where they are a file's."""


class Shard:
    """A weight file on a local disk, used as a `with` block; `tensor(ref)` returns its tensors.

    With `copy=False` tensors are views of a private mapping: they take no anonymous memory until they are written to,
    and the file never changes. The mapping lives as long as one of its tensors. With `copy=True` each tensor is read
    into new memory. Raises NotFoundError when the file can't be opened, and CorruptError when the file changed while it
    was open, or when its identity is not `expected`.
    """

    def __init__(
        self,
        path: Path,
        *,
        copy: bool = False,
        expected: FileIdentity | None = None,
        mappings: Mappings | None = None,
    ) -> None:
        self.path = path
        self.copy = copy
        self._expected = expected
        self._mappings = mappings
        self._map: Buffer | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise unreadable(self.path, error) from error
        try:
            self._opened = file_identity(self._file.fileno())
            self._check_expected()
            if not self.copy and self._opened[1] > 0:
                self._map = self._mapping()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        closed = file_identity(self._file.fileno())
        self._file.close()
        self._map = None
        if error is None and closed != self._opened:
            raise self._changed("while it was being loaded")

    def _mapping(self) -> Buffer:
        """Return a mapping of the file that is still in use, else a new one: each mapping takes address space."""
        if self._mappings is None:
            return self._new_mapping()
        key = str(self.path), self._opened
        found = self._mappings.get(key)
        if found is None:
            found = self._mappings[key] = self._new_mapping()
        return found

    def _new_mapping(self) -> Buffer:
        try:
            return map_file(self._file.fileno(), self._opened[1])
        except (OSError, ValueError) as error:
            raise UnsupportedError(
                f"{self.path.name} can't be mapped: {error}",
                where=str(self.path),
                cure=Wording("pass {copy} to read it instead", copy=True),
            ) from error

    def _check_expected(self) -> None:
        # For a file that is shorter now, `tensor` raises a more precise error: it names the first missing tensor.
        if self._expected not in (None, self._opened) and self._opened[1] >= self._expected[1]:
            raise self._changed("since its header was read")

    def _changed(self, when: str) -> CorruptError:
        return CorruptError(
            f"{self.path.name} was changed {when}",
            where=str(self.path),
            cure="open it again when nothing writes to it",
        )

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """Return the stored tensor in its stored dtype; its storage covers this tensor alone."""
        dtype = torch_dtype(ref)
        start, stop = ref.span
        if start == stop:
            return torch.empty(torch_shape(ref.dtype, ref.shape), dtype=dtype, device="cpu")
        if stop > self._opened[1]:
            raise CorruptError(
                f"{self.path.name} ends before {ref.name!r}",
                where=f"{self.path}: {self._opened[1]:,} bytes, the tensor ends at {stop:,}",
                cure="fetch the file again",
            )
        itemsize = dtype.itemsize
        if self._map is None and ref.strides is not None and (rows := strided_rows(ref)) is not None:
            return _read_rows(self._file.fileno(), ref, rows, dtype)
        if self._map is None or start % itemsize:
            # An unaligned tensor is copied: torch's kernels may require alignment.
            flat = _read(self._file.fileno(), start, stop - start, dtype)
        else:
            count = (stop - start) // itemsize
            flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)
        if len(ref.shape) == 1 and ref.strides is None:
            return flat  # half of the tensors of many models
        if ref.strides is None:
            return flat.view(torch_shape(ref.dtype, ref.shape))
        return flat.as_strided(ref.shape, ref.strides)

    def release(self, ref: TensorRef, first: int = 0, stop: int | None = None) -> None:
        """Release the pages that hold only these bytes of `ref`; the next access reads them from the file again."""
        if self._map is not None:
            end = ref.span.stop if stop is None else ref.span.start + stop
            forget_pages(self._map, ref.span.start + first, end)


def reading_order(
    tensors: Iterable[tuple[str, Derived]], shards: Iterable[str]
) -> dict[str, list[tuple[str, TensorRef]]]:
    """Return {shard: [(key, stored part)]}, with the parts of each shard in the order of their bytes.

    A part that one tensor contains several times is listed once. Parts of one packed weight stand together, in the
    place of the first. Shards without parts are left out.
    """
    by_shard: dict[str, list[tuple[int, str, TensorRef]]] = {shard: [] for shard in shards}
    for key, tensor in tensors:
        if isinstance(tensor, TensorRef):
            by_shard[tensor.shard].append((tensor.span.start, key, tensor))
            continue
        for part, place in dict(reading_places(tensor)).items():
            by_shard[part.shard].append((place, key, part))
    for parts in by_shard.values():
        parts.sort(key=itemgetter(0))
    return {shard: [part[1:] for part in parts] for shard, parts in by_shard.items() if parts}


def torch_dtype(ref: Derived) -> torch.dtype:
    """Return the torch dtype of a stored tensor. Raises UnsupportedError when this torch has no such dtype."""
    if ref.dtype == "F4" and (not ref.shape or ref.shape[-1] % 2 or getattr(ref, "strides", None)):
        raise UnsupportedError(
            "torch holds two F4 in one element, and this tensor can't be cut so",
            where=f"{ref.shard}: {ref.name}, shape {ref.shape}",
            cure="leave its key map out, or leave it out of the names",
        )
    try:
        return DTYPES[ref.dtype]
    except KeyError:
        raise UnsupportedError(
            f"this torch has no dtype for {ref.dtype}",
            where=f"{ref.shard}: {ref.name}",
            cure="use a newer torch",
        ) from None


LEAST_RUN = 2**11  # bytes: for fewer, one read per row costs more than reading the rows whole


_LEAST_GAP = 2**12  # bytes between two rows: shorter gaps are read too, and left out in memory


def strided_rows(ref: TensorRef) -> int | None:
    """Return the bytes of a row of a strided tensor whose rows are worth a read each; else None.

    That is a tensor of columns, as tensor parallelism cuts them: what lies between its rows is not read.
    """
    if ref.strides is None or len(ref.shape) != 2 or ref.strides[1] != 1:
        return None
    width = ref.nbytes // ref.numel
    row, step = ref.shape[1] * width, ref.strides[0] * width
    return row if row >= LEAST_RUN and step - row >= _LEAST_GAP else None


def _read_rows(descriptor: int, ref: TensorRef, row: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of columns, packed; each of its rows is read by itself."""
    assert ref.strides is not None
    result = torch.frombuffer(private_memory(ref.nbytes), dtype=dtype)
    memory = memory_of(result)
    step = ref.strides[0] * dtype.itemsize
    for number in range(ref.shape[0]):
        _read_into(descriptor, memory[number * row : (number + 1) * row], ref.span.start + number * step)
    return result.view(ref.shape)


_LARGE = 2**17  # bytes: from this size on malloc uses mappings too


def packed_memory(nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    """Return memory of its own for a tensor that may be cast and freed at once: a large one goes back to the kernel."""
    if nbytes >= _LARGE:
        return torch.frombuffer(private_memory(nbytes), dtype=dtype)
    return torch.empty(nbytes // dtype.itemsize, dtype=dtype, device="cpu")


def touch(memory: memoryview) -> None:
    """Make the kernel allocate the pages of new memory before its first write, without the interpreter's lock."""
    _fresh_pages.touch(ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory))


def memory_of(flat: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, to be written; the tensor has to outlive them."""
    return memoryview((ctypes.c_char * flat.nbytes).from_address(flat.data_ptr())).cast("B")


_AT_ONCE = 2**23  # bytes: the processor has some of them in its cache still when they are written to
_fresh_pages = FreshPages()


def _read(descriptor: int, start: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    flat = packed_memory(nbytes, dtype)
    address = flat.data_ptr()
    memory = memory_of(flat)
    for at in range(0, nbytes, _AT_ONCE):
        part = memory[at : at + _AT_ONCE]
        _fresh_pages.touch(address + at, len(part))
        _read_into(descriptor, part, start + at)
    return flat


def _read_into(descriptor: int, memory: memoryview, start: int) -> None:
    nbytes = len(memory)
    done = 0
    while done < nbytes:
        try:
            got = os.preadv(descriptor, [memory[done:]], start + done)
        except OSError as error:
            raise CorruptError(
                f"reading a tensor failed: {error.strerror}", cure="check the disk, or copy the file again"
            ) from error
        if got == 0:
            raise CorruptError(
                f"the file ends at byte {start + done:,}, inside a tensor", cure="fetch the file again"
            )
        done += got
