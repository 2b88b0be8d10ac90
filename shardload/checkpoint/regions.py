"""Regions: a tensor of a file, or the part of one that slices name; no more is read than what holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardload.checkpoint.shard import LEAST_RUN, memory_of, packed_memory, torch_dtype
from shardload.errors import CorruptError, UsageError
from shardload.keymap.derived import Filled, narrowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardload.checkpoint.shard import AnyShard
    from shardload.checkpoint.sources.source import SourceFile
    from shardload.keymap import Derived
    from shardload.tensor_ref import Region, TensorRef

_LONG_READ = 2**20  # bytes: shorter reads over a network share requests


def read_tensor(
    file: SourceFile, ref: TensorRef, region: Region | None, opened: Callable[..., AnyShard]
) -> torch.Tensor:
    """Return one tensor of a file, or a region of that tensor: see `Checkpoint.read`.

    `opened` returns a shard by its name and the tensors that are wanted of it.
    """
    if region is None:
        with opened(ref.shard, (ref,)) as shard:
            return shard.tensor(ref)
    _check_region(region, ref)
    dtype = torch_dtype(ref)
    if ref.strides is not None or not ref.shape or not region or ref.dtype == "F4":
        return read_tensor(file, ref, None, opened)[region].clone()
    first, *rest = region
    rows = range(*first.indices(ref.shape[0]))
    if not rows:
        return torch.empty(ref.shape, dtype=dtype, device="cpu")[region].clone()
    if (columns := _columns(file, ref, rest)) is not None:
        block = _read_columns(file, ref, rows, columns)
        inside = (slice(None), slice(None, None, rest[0].step), *rest[1:])
        taken = block[inside]
        return taken if taken.shape == block.shape else taken.clone()
    low, high = min(rows), max(rows) + 1
    row_bytes = ref.span.nbytes // ref.shape[0]
    shape = (high - low, *ref.shape[1:])
    block = _read_part(file, ref, low * row_bytes, (high - low) * row_bytes).view(shape)
    inside = (slice(rows[0] - low, rows[-1] - low + 1, rows.step), *rest)
    taken = block[inside]
    return taken if taken.shape == block.shape else taken.clone()


def _read_part(file: SourceFile, ref: TensorRef, start: int, nbytes: int) -> torch.Tensor:
    """Return some bytes of a tensor, flat: large ones over a network straight in memory of their own."""
    dtype = torch_dtype(ref)
    if not nbytes:
        return torch.empty(0, dtype=dtype, device="cpu")
    if file.is_remote and nbytes >= _LONG_READ:
        flat = packed_memory(nbytes, dtype)
        file.read_into(ref.span.start + start, memory_of(flat))
        return flat
    wanted = file.read_at(ref.span.start + start, nbytes)
    if len(wanted) != nbytes:
        raise CorruptError(
            f"{file.name} ends inside {ref.name!r}", where=file.name, cure="fetch the file again"
        )
    return torch.frombuffer(bytearray(wanted), dtype=dtype)


def read_region(tensor: Derived, region: Region, read: Callable[[Derived], torch.Tensor]) -> torch.Tensor:
    """Return a region of a tensor in several pieces: only pieces that hold some of it are read."""
    _check_region(region, tensor)
    torch_dtype(tensor)
    part: Derived | Filled = tensor
    steps = []
    for dim, each in enumerate(region):
        wanted = range(*each.indices(tensor.shape[dim]))
        part = (
            narrowed(part, dim, wanted[0], wanted[-1] + 1 - wanted[0])
            if wanted
            else narrowed(part, dim, 0, 0)
        )
        steps.append(slice(None, None, wanted.step))
    if isinstance(part, Filled):
        return torch.empty(part.shape, dtype=torch_dtype(tensor), device="cpu")
    return read(part)[tuple(steps)].clone()


def _columns(file: SourceFile, ref: TensorRef, rest: list[slice]) -> range | None:
    """Return the columns to read of each row, or None when reading whole rows is cheaper or the file is remote."""
    if not rest or file.is_remote:
        return None
    columns = range(*rest[0].indices(ref.shape[1]))
    if not columns:
        return None
    columns = range(columns[0], columns[-1] + 1)
    run = len(columns) * (ref.span.nbytes // (ref.shape[0] * ref.shape[1]))
    return columns if len(columns) < ref.shape[1] and run >= LEAST_RUN else None


def _read_columns(file: SourceFile, ref: TensorRef, rows: range, columns: range) -> torch.Tensor:
    """Return some columns of some rows; only these bytes are read, with one read per row."""
    cell = ref.span.nbytes // (ref.shape[0] * ref.shape[1])
    run = len(columns) * cell
    wanted = bytearray(len(rows) * run)
    for number, row in enumerate(rows):
        part = file.read_at(ref.span.start + (row * ref.shape[1] + columns[0]) * cell, run)
        if len(part) != run:
            raise CorruptError(
                f"{file.name} ends inside {ref.name!r}", where=file.name, cure="fetch the file again"
            )
        wanted[number * run : (number + 1) * run] = part
    flat = torch.frombuffer(wanted, dtype=torch_dtype(ref))
    return flat.view(len(rows), len(columns), *ref.shape[2:])


def _check_region(region: Region, ref: Derived) -> None:
    """Raise UsageError unless a region is a tuple of forward slices, at most one per dimension."""
    if not isinstance(region, tuple) or not all(isinstance(part, slice) for part in region):
        raise UsageError("a region is a tuple of slices", where=f"{ref.name}: {region!r}")
    if len(region) > len(ref.shape):
        raise UsageError(f"a region of {len(region)} slices for a tensor of {len(ref.shape)} dimensions")
    if not all(
        isinstance(bound, (int, type(None)))
        for part in region
        for bound in (part.start, part.stop, part.step)
    ) or any(part.step is not None and part.step < 1 for part in region):
        raise UsageError(
            "the slices of a region take whole numbers, and steps of at least 1",
            where=f"{ref.name}: {region!r}",
        )
