"""Layout: the header of a safetensors file and the offset of each tensor, planned before anything is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardload.errors import CorruptError
from shardload.tensor_ref import DTYPE_BITS

if TYPE_CHECKING:
    from pathlib import Path

    from shardload.writing.output import OutputShard, OutputTensor


@dataclass(frozen=True)
class Layout:
    """A file's bytes before its first tensor, each tensor with its offset in the file, and the file's size."""

    header: bytes
    places: tuple[tuple[OutputTensor, int], ...]
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return self.size - len(self.header)

    @classmethod
    def of(cls, shard: OutputShard) -> Layout:
        """Lay out a shard. A given header is used byte for byte; CorruptError where it describes other tensors.

        Without one, wide elements come before narrow ones and the data begins at a multiple of eight bytes, so that
        every tensor is aligned to its element size.
        """
        tensors = shard.tensors
        if shard.header is None:
            tensors = tuple(sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensor.dtype]))
        header = _header(tensors, dict(shard.metadata)) if shard.header is None else shard.header
        places = []
        end = len(header)
        for tensor in tensors:
            places.append((tensor, end))
            end += tensor.nbytes
        if shard.header:
            _check(shard, json.loads(shard.header[8:]), places)
        return cls(header, tuple(places), end)


def read_raw_header(path: Path) -> bytes:
    """Return the header of a safetensors file, including the eight bytes of its length."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def _header(tensors: tuple[OutputTensor, ...], metadata: dict[str, str]) -> bytes:
    tree: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for tensor in tensors:
        offsets = [end, end + tensor.nbytes]
        tree[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check(shard: OutputShard, tree: dict[str, Any], places: list[tuple[OutputTensor, int]]) -> None:
    """Raise CorruptError unless a given header describes exactly these tensors at these offsets."""
    assert shard.header is not None
    start = len(shard.header)
    names = [name for name in tree if name != "__metadata__"]
    wrong = [] if len(names) == len(places) else [f"{len(names)} tensors for {len(places)}"]
    for tensor, place in places:
        offsets = [place - start, place - start + tensor.nbytes]
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        if tree.get(tensor.name) != entry:
            wrong.append(tensor.name)
    if wrong:
        raise CorruptError(
            f"the header for {shard.name} describes other tensors than those to be written",
            where=", ".join(wrong[:8]),
        )
