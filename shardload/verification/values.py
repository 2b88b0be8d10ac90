"""Looking at every number of a checkpoint: what training or a damaged disk leaves, and a good one has not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardload.shard import Shard
from shardload.verification.report import ValueFinding

if TYPE_CHECKING:
    from shardload.checkpoint import Checkpoint
    from shardload.progress import ProgressMeter
    from shardload.tensor_ref import TensorRef

_CHUNK = 2**20  # elements
_TAIL = 4096  # bytes: a page, the least that a download which was cut leaves unwritten
_SMALL_FLOATS = 1  # bytes an element: torch has few operations for these


def screen_values(checkpoint: Checkpoint, meter: ProgressMeter) -> list[ValueFinding]:
    """Return what is odd in the tensors, in file order: NaN, Inf, matrices of zeros, tails of a page of zeros or more.

    One tensor is looked at at a time, a few MB of it; mapped pages are let go again.
    """
    found: list[ValueFinding] = []
    by_shard: dict[str, list[TensorRef]] = {}
    for ref in checkpoint.tensors.values():
        by_shard.setdefault(ref.shard, []).append(ref)
    for name, refs in by_shard.items():
        meter.shard(name)
        path = checkpoint.source.open(name).local_path()
        with Shard(path, expected=checkpoint.identities.get(name)) as shard:
            for ref in refs:
                found += _screen(ref, shard.tensor(ref))
                shard.release(ref)
                meter.tensor(ref.nbytes)
    return found


def _screen(ref: TensorRef, tensor: torch.Tensor) -> list[ValueFinding]:
    flat = tensor.reshape(-1)
    if flat.numel() == 0:
        return []
    nan = inf = 0
    if flat.dtype.is_floating_point or flat.dtype.is_complex:
        for start in range(0, flat.numel(), _CHUNK):
            chunk = flat[start : start + _CHUNK]
            if flat.dtype.itemsize == _SMALL_FLOATS:
                chunk = chunk.float()
            if not bool(torch.isfinite(chunk).all()):
                nan += int(torch.isnan(chunk).sum())
                inf += int(torch.isinf(chunk).sum())
    kinds = [("NaN", nan, flat.numel()), ("Inf", inf, flat.numel())]
    zeros = _trailing_zeros(flat)
    nbytes = flat.numel() * flat.dtype.itemsize
    if zeros == nbytes:
        # Biases are zero from the start; a matrix of more than one row is not.
        is_matrix = len(ref.shape) > 1 and min(ref.shape) > 1
        kinds.append(("all zero", flat.numel() if is_matrix else 0, flat.numel()))
    elif zeros >= _TAIL:
        kinds.append(("zero tail", zeros, nbytes))
    return [ValueFinding(ref.name, ref.shard, kind, count, of) for kind, count, of in kinds if count]  # type: ignore[arg-type]


def _trailing_zeros(flat: torch.Tensor) -> int:
    """Return how many bytes at the end are zero."""
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
