"""Screens every number of a checkpoint for the traces of failed training, cut downloads and damaged disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardload.checkpoint.shard import torch_dtype
from shardload.compare.verify.report import ValueFinding
from shardload.errors import CorruptError
from shardload.keymap import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardload._system.progress import ProgressMeter
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.checkpoint.sources.source import SourceFile
    from shardload.tensor_ref import TensorRef

_CHUNK = 2**20  # elements
_TAIL = 4096  # bytes: an interrupted download leaves at least one page unwritten
_SMALL_FLOATS = 1  # bytes an element: torch has few operations for float8


def screen_values(checkpoint: Checkpoint, meter: ProgressMeter) -> list[ValueFinding]:
    """Return the odd values in file order: NaN, Inf, matrices of zeros, tails of at least a page of zeros.

    A few MB are read at a time and nothing is mapped: a file that is truncated meanwhile raises an error, not a signal.
    """
    found: list[ValueFinding] = []
    by_shard: dict[str, list[TensorRef]] = {}
    for ref in (ref for tensor in checkpoint.tensors.values() for ref in leaves(tensor)):
        by_shard.setdefault(ref.shard, []).append(ref)
    for name, refs in by_shard.items():
        meter.shard(name)
        file = checkpoint.source.open(name)
        for ref in refs:
            found += _screen(ref, file)
            meter.tensor(ref.nbytes)
    return found


def _screen(ref: TensorRef, file: SourceFile) -> list[ValueFinding]:
    """Screen a tensor's bytes in the file; for a strided view, all bytes from its first element to its last."""
    numel = ref.span.nbytes // torch_dtype(ref).itemsize
    nan = inf = zeros = 0
    for chunk in _chunks(ref, file):
        may_be_odd = chunk.dtype.is_floating_point or chunk.dtype.is_complex
        if may_be_odd and ref.dtype != "F4" and not _all_finite(chunk):  # four bits hold no NaN and no Inf
            nan += int(torch.isnan(_wide(chunk)).sum())
            inf += int(torch.isinf(_wide(chunk)).sum())
        trailing = _trailing_zeros(chunk)
        zeros = zeros + trailing if trailing == chunk.nbytes else trailing
    kinds = [("NaN", nan, numel), ("Inf", inf, numel)]
    if numel and zeros == ref.span.nbytes:
        # A new bias is zero; a matrix with several rows and columns is not.
        is_matrix = len(ref.shape) > 1 and min(ref.shape) > 1
        kinds.append(("all zero", numel if is_matrix else 0, numel))
    elif zeros >= _TAIL:
        kinds.append(("zero tail", zeros, ref.span.nbytes))
    return [ValueFinding(ref.name, ref.shard, kind, count, of) for kind, count, of in kinds if count]  # type: ignore[arg-type]


def _chunks(ref: TensorRef, file: SourceFile) -> Iterator[torch.Tensor]:
    dtype = torch_dtype(ref)
    step = _CHUNK * dtype.itemsize
    for start in range(ref.span.start, ref.span.stop, step):
        wanted = min(step, ref.span.stop - start)
        raw = file.read_at(start, wanted)
        if len(raw) != wanted:
            raise CorruptError(
                f"{ref.shard} ends inside {ref.name!r}", where=ref.shard, cure="fetch the file again"
            )
        yield torch.frombuffer(bytearray(raw), dtype=dtype)


def _wide(chunk: torch.Tensor) -> torch.Tensor:
    return chunk.float() if chunk.dtype.itemsize == _SMALL_FLOATS else chunk


def _all_finite(chunk: torch.Tensor) -> bool:
    return bool(torch.isfinite(_wide(chunk)).all())


def _trailing_zeros(flat: torch.Tensor) -> int:
    """Return the number of zero bytes at the end."""
    raw = flat.view(torch.uint8)
    stop = raw.numel()
    step = 1 << 12
    while stop > 0:
        start = max(0, stop - step)
        set_bytes = torch.nonzero(raw[start:stop])
        if set_bytes.numel():
            return raw.numel() - (start + int(set_bytes[-1]) + 1)
        stop = start
        step = min(step * 4, 1 << 22)
    return raw.numel()
