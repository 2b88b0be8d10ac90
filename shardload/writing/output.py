"""Output: the plan of a checkpoint that will be written."""

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
    """The bytes of a tensor in another file, from `start` on; the kernel copies them.

    `expected` is the identity that the file had when its header was read.
    """

    path: Path
    start: int
    expected: FileIdentity | None = None


Blocks = Callable[[], "Iterable[torch.Tensor]"]
"""Yields a tensor's elements in C order, as contiguous CPU tensors of its dtype; each is written at once.

It may be called several times and yields the same values each time.
"""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to write. `dtype` is a code of the safetensors format."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: FileRange | Blocks

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the elements. Raises UnsupportedError where they do not fill whole bytes."""
        bits = prod(self.shape) * DTYPE_BITS[self.dtype]
        if bits % 8:
            raise UnsupportedError(
                f"{self.dtype} elements of shape {self.shape} do not fill whole bytes", where=self.name
            )
        return bits // 8


@dataclass(frozen=True)
class OutputShard:
    """One weight file to write.

    `header` is the raw header of another file, including the eight bytes of its length, that describes this file too;
    the tensors are then in the order of their bytes. Without it a header is made from the tensors and `metadata`. An
    empty one is that of a file of another format, in which the tensors follow one another.
    """

    name: str
    tensors: tuple[OutputTensor, ...]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    header: bytes | None = None


@dataclass(frozen=True)
class SameFile:
    """A whole weight file that does not change: cloned where the filesystem can, else hard-linked, else copied."""

    name: str
    path: Path
    expected: FileIdentity | None = None


@dataclass(frozen=True)
class Output:
    """A whole checkpoint: weight files, the name and text of an index (or None), and the files beside them.

    `beside` maps names to bytes, or to files that are copied. `sources` are folders that must not be written into. An
    output that is not `alone` may share its folder with weights of other names.
    """

    shards: tuple[OutputShard | SameFile, ...]
    index: tuple[str, bytes] | None = None
    beside: Mapping[str, bytes | Path] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    alone: bool = True

    @property
    def names(self) -> list[str]:
        """The names of all files in the order in which they may appear: an index, or else the weights, last."""
        last = [self.index[0]] if self.index else []
        return [*self.beside, *(shard.name for shard in self.shards), *last]


def index_document(weight_map: Mapping[str, str], total_size: int) -> bytes:
    """Return the text of a `model.safetensors.index.json`; `total_size` is the size of all tensors in bytes."""
    document = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    return json.dumps(document, indent=2).encode()


def grouped(tensors: Iterable[OutputTensor], limit: int | None) -> list[list[OutputTensor]]:
    """Return tensors in groups of at most `limit` bytes; a larger tensor stands alone."""
    groups: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if limit is not None and groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups


def split_into_shards(
    tensors: Iterable[OutputTensor],
    limit: int | None = None,
) -> tuple[tuple[OutputShard, ...], tuple[str, bytes] | None]:
    """Split tensors into shards of at most `limit` bytes; return the shards, and an index where there are several.

    A tensor that is larger than the limit gets a shard of its own. Names are the usual ones: `model.safetensors`, or
    `model-00001-of-00003.safetensors` with `model.safetensors.index.json`.
    """
    groups = grouped(tensors, limit)
    count = len(groups)
    names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    names = names if count > 1 else ["model.safetensors"]
    shards = tuple(OutputShard(name, tuple(group)) for name, group in zip(names, groups, strict=True))
    if count == 1:
        return shards, None
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    return shards, ("model.safetensors.index.json", index_document(weight_map, total))
