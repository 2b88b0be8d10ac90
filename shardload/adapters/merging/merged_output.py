"""From a base checkpoint and the changes of its tensors to the Output that will be written."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from shardload.adapters.merging.base_rows import BaseRows
from shardload.adapters.merging.change import Change, merged_blocks, row_blocks
from shardload.adapters.merging.rounding import Rounding, RoundingKind
from shardload.adapters.merging.survival import MergedTensor, Survival
from shardload.checkpoint.shard import CODES, DTYPES, Shard
from shardload.keymap.derived import decoded_to, leaves
from shardload.tensor_ref import TensorRef
from shardload.writing import (
    FileRange,
    Output,
    OutputShard,
    OutputTensor,
    SameFile,
    index_document,
    read_raw_header,
    split_into_shards,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from shardload.adapters.merging.changes import Changes
    from shardload.adapters.merging.workers import Workers
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived


class MergedOutput:
    """Plans a merged checkpoint; `rows` fills up with what became of each changed tensor while it is written.

    `dtype` casts every floating tensor, but for the names in `kept`, which are written in float32; None keeps the
    stored dtypes. With `limit` (bytes) the tensors are dealt to
    new shards; without it every shard of the base becomes one of the same name, its header used again byte for byte
    where names, shapes and dtypes are the same. Packed weights that the checkpoint makes plain, and tensors in several
    pieces, become plain tensors in the shard of their first part.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        changes: Changes,
        *,
        dtype: torch.dtype | None,
        rounding: RoundingKind,
        seed: int,
        limit: int | None,
        beside: Mapping[str, bytes | Path],
        workers: Workers,
        kept: Collection[str] = (),
    ) -> None:
        self.checkpoint = checkpoint
        self.changes = changes
        self.dtype = dtype
        self.rounding: RoundingKind = rounding
        self.seed = seed
        self.limit = limit
        self.beside = beside
        self.workers = workers
        self.kept = kept
        self.rows: dict[str, MergedTensor] = {}
        self._paths = {
            info.name: checkpoint.source.open(info.name).local_path() for info in checkpoint.shards
        }
        self._stored: dict[str, list[tuple[str, Derived]]] = {info.name: [] for info in checkpoint.shards}
        for name, tensor in checkpoint.tensors.items():
            self._stored[tensor.shard].append((name, tensor))
        for shard, stored in list(self._stored.items()):
            stored.sort(key=lambda each: next((leaf.span for leaf in leaves(each[1])), (0, 0)))
            if not stored and checkpoint.packing:
                del self._stored[shard]  # it held no more than parts of packed weights
        self.output = self._output()

    def rows_of(self, shard: str) -> list[dict[str, object]]:
        """Return what became of the changed tensors of one written shard, as JSON data."""
        for made in self.output.shards:
            if made.name == shard and isinstance(made, OutputShard):
                return [
                    self.rows[tensor.name].to_dict() for tensor in made.tensors if tensor.name in self.rows
                ]
        return []

    def _output(self) -> Output:
        named = self.checkpoint.named is not None  # its folder may hold other files
        sources = () if named else tuple({path.parent for path in self._paths.values()})
        if self.limit is not None:
            tensors = [self._tensor(*each) for stored in self._stored.values() for each in stored]
            shards, index = split_into_shards(tensors, self.limit)
            return Output(shards, index, self.beside, sources)
        shards_as_they_are = tuple(self._shard(name) for name in self._stored)
        return Output(shards_as_they_are, self._index(), self.beside, sources)

    def _shard(self, name: str) -> OutputShard | SameFile:
        stored, path = self._stored[name], self._paths[name]
        tensors = tuple(self._tensor(*each) for each in stored)
        pairs = list(zip(tensors, (tensor for _, tensor in stored), strict=True))
        is_whole = self._is_safetensors(name)
        if is_whole and all(isinstance(new.content, FileRange) for new, _ in pairs):
            return SameFile(name, path, self.checkpoint.identities.get(name))
        alike = all((new.dtype, new.shape) == (old.dtype, old.shape) for new, old in pairs)
        header = read_raw_header(path) if is_whole and alike else None
        return OutputShard(self._new_name(name), tensors, header=header)

    def _index(self) -> tuple[str, bytes] | None:
        """Return the base's own index where it still holds, or one for the new names and sizes."""
        if len(self._stored) == 1:
            return None
        index = self.checkpoint.index
        names = {name: self._new_name(name) for name in self._stored}
        sizes = {
            name: self._tensor(name, tensor).nbytes for each in self._stored.values() for name, tensor in each
        }
        same = all(old == new for old, new in names.items()) and all(
            isinstance(tensor, TensorRef) and sizes[name] == tensor.nbytes
            for name, tensor in self.checkpoint.tensors.items()
        )
        if index is not None and same:
            file = self.checkpoint.source.open(index)
            return index, file.read_at(0, file.size)
        weight_map = {name: names[shard] for shard, each in self._stored.items() for name, _ in each}
        return "model.safetensors.index.json", index_document(weight_map, sum(sizes.values()))

    def _is_safetensors(self, name: str) -> bool:
        """Whether a shard is a safetensors file that holds these tensors, as they are, and no others."""
        info = next(info for info in self.checkpoint.shards if info.name == name)
        stored = self._stored[name]
        as_they_are = all(isinstance(tensor, TensorRef) for _, tensor in stored)
        return name.endswith(".safetensors") and info.tensors == len(stored) and as_they_are

    def _new_name(self, name: str) -> str:
        if name.endswith(".safetensors"):
            return name
        place, count = list(self._stored).index(name) + 1, len(self._stored)
        return f"model-{place:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"

    def _tensor(self, name: str, ref: Derived) -> OutputTensor:
        change = self.changes.get(name)
        stored = DTYPES.get(ref.dtype)
        wanted = torch.float32 if name in self.kept else self.dtype
        casts = wanted is not None and ref.is_floating and stored is not wanted
        dtype = wanted if casts else stored
        if change is None and not casts and isinstance(ref, TensorRef) and ref.strides is None:
            content = FileRange(
                self._paths[ref.shard], ref.span.start, self.checkpoint.identities.get(ref.shard)
            )
            return OutputTensor(name, ref.dtype, ref.shape, content)
        if dtype is None:
            raise AssertionError(ref.dtype)
        new = None if change is None else change.replacement
        shape = ref.shape if new is None else tuple(new.shape)
        return OutputTensor(name, CODES[dtype], shape, partial(self._blocks, name, ref, change, dtype))

    def _blocks(
        self, name: str, ref: Derived, change: Change | None, dtype: torch.dtype
    ) -> Iterator[torch.Tensor]:
        """Yield a tensor's blocks: what is changed folded in, the rest cast."""
        with self._base(ref, CODES[dtype] if change is None else "F32") as base:
            if change is None:
                for rows in row_blocks(ref.shape) if ref.shape else [...]:
                    yield base[rows].to(dtype).contiguous()
                return
            survival = Survival()
            rounding = Rounding(self.rounding, self.seed, name)
            for _, block in merged_blocks(base, change, dtype, rounding, survival, self.workers):
                yield block
            self.rows[name] = change.row(ref.shape, dtype, survival)

    @contextmanager
    def _base(self, tensor: Derived, code: str) -> Iterator[Any]:
        """Yield a tensor of the base; packed weights are decoded to the dtype of `code`. Its pages are let go after."""
        if not isinstance(tensor, TensorRef):
            yield BaseRows(self.checkpoint, decoded_to(tensor, code))
            return
        expected = self.checkpoint.identities.get(tensor.shard)
        with Shard(self._paths[tensor.shard], expected=expected) as shard:
            yield shard.tensor(tensor)
            shard.release(tensor)
