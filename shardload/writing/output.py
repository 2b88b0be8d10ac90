"""Output: what a checkpoint that is to be written will be, before a byte of it exists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from shardload.errors import UnsupportedError
from shardload.tensor_ref import DTYPE_BITS

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from shardload._system.file_identity import FileIdentity


@dataclass(frozen=True)
class FileRange:
    """Bytes of another file from `start` on, as many as the tensor has; the kernel copies them.

    `expected` is the identity that the file had when its header was read.
    """

    path: Path
    start: int
    expected: FileIdentity | None = None


Blocks = Callable[[], "Iterable[torch.Tensor]"]
"""Gives a tensor's elements in C order, as contiguous CPU tensors of its dtype, each of which is written at once.

It is called once a write, and gives the same every time: a run that was killed is made whole by another call.
"""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to be written. `dtype` is a code of the safetensors format."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: FileRange | Blocks

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the elements. Raises UnsupportedError for a dtype that does not fill whole bytes."""
        bits = prod(self.shape) * DTYPE_BITS[self.dtype]
        if bits % 8:
            raise UnsupportedError(
                f"{self.dtype} of shape {self.shape} fills no whole bytes", where=self.name
            )
        return bits // 8


@dataclass(frozen=True)
class OutputShard:
    """One safetensors file to be written, its tensors in the order of their bytes.

    `header` is the raw header of another file, its eight bytes of length included, where it holds for this one
    too; else one is made from the tensors and `metadata`.
    """

    name: str
    tensors: tuple[OutputTensor, ...]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    header: bytes | None = None


@dataclass(frozen=True)
class SameFile:
    """A whole weight file that stays as it is: cloned where the filesystem can, else hard-linked, else copied."""

    name: str
    path: Path
    expected: FileIdentity | None = None


@dataclass(frozen=True)
class Output:
    """A whole checkpoint: weight files, the index as text where there is one, and what stands beside them.

    `beside` maps names to bytes, or to files that are copied. `sources` are folders that are never written into. An
    output that is not `alone` may stand in a folder with weights of other names.
    """

    shards: tuple[OutputShard | SameFile, ...]
    index: tuple[str, bytes] | None = None
    beside: Mapping[str, bytes | Path] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    alone: bool = True

    @property
    def names(self) -> list[str]:
        """All files, in the order in which they may appear: an index, or else the weights, last."""
        last = [self.index[0]] if self.index else []
        return [*self.beside, *(shard.name for shard in self.shards), *last]


def index_document(weight_map: Mapping[str, str], total_size: int) -> bytes:
    """Return the text of a `model.safetensors.index.json`; `total_size` is the bytes of all tensors."""
    document = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    return json.dumps(document, indent=2).encode()


def split_into_shards(
    tensors: Iterable[OutputTensor],
    limit: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[tuple[OutputShard, ...], tuple[str, bytes] | None]:
    """Return tensors as shards of at most `limit` bytes (a tensor that is larger alone), and their index if any.

    Names are those of the field: `model.safetensors`, or `model-00001-of-00003.safetensors` with
    `model.safetensors.index.json`.
    """
    groups: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if limit is not None and groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    count = len(groups)
    names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    names = names if count > 1 else ["model.safetensors"]
    own = {"format": "pt"} if metadata is None else metadata
    shards = tuple(OutputShard(name, tuple(group), own) for name, group in zip(names, groups, strict=True))
    if count == 1:
        return shards, None
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    return shards, ("model.safetensors.index.json", index_document(weight_map, total))
