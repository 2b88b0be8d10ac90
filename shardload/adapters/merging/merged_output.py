"""From a base checkpoint and the changes of its tensors to the Output that will be written."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from shardload.adapters.merging.change import Change, merged_blocks, row_blocks
from shardload.adapters.merging.rounding import Rounding, RoundingKind
from shardload.adapters.merging.survival import MergedTensor, Survival
from shardload.checkpoint.items import in_one_piece
from shardload.checkpoint.shard import CODES, DTYPES, Shard
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
    from shardload.tensor_ref import TensorRef


class MergedOutput:
    """Plans a merged checkpoint; `rows` fills up with what became of each changed tensor while it is written.

    `dtype` casts every floating tensor, but for the names in `kept`, which are written in float32; None keeps the
    stored dtypes. With `limit` (bytes) the tensors are dealt to
    new shards; without it every shard of the base becomes one of the same name, its header used again byte for byte
    where names, shapes and dtypes are the same.
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
        self._refs: dict[str, list[TensorRef]] = {info.name: [] for info in checkpoint.shards}
        for ref in in_one_piece(checkpoint.tensors, checkpoint.label).values():
            self._refs[ref.shard].append(ref)
        for refs in self._refs.values():
            refs.sort(key=lambda ref: ref.span)
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
        sources = tuple({path.parent for path in self._paths.values()})
        if self.limit is not None:
            tensors = [self._tensor(ref) for refs in self._refs.values() for ref in refs]
            shards, index = split_into_shards(tensors, self.limit)
            return Output(shards, index, self.beside, sources)
        shards_as_they_are = tuple(self._shard(name) for name in self._refs)
        return Output(shards_as_they_are, self._index(), self.beside, sources)

    def _shard(self, name: str) -> OutputShard | SameFile:
        refs, path = self._refs[name], self._paths[name]
        tensors = tuple(self._tensor(ref) for ref in refs)
        is_whole = self._is_safetensors(name)
        if is_whole and all(_is_same_range(tensor, ref) for tensor, ref in zip(tensors, refs, strict=True)):
            return SameFile(name, path, self.checkpoint.identities.get(name))
        alike = all(
            (tensor.dtype, tensor.shape) == (ref.dtype, ref.shape)
            for tensor, ref in zip(tensors, refs, strict=True)
        )
        header = read_raw_header(path) if is_whole and alike else None
        return OutputShard(self._new_name(name), tensors, header=header)

    def _index(self) -> tuple[str, bytes] | None:
        """Return the base's own index where it still holds, or one for the new names and sizes."""
        if len(self._refs) == 1:
            return None
        index = self.checkpoint.index
        names = {name: self._new_name(name) for name in self._refs}
        same = all(old == new for old, new in names.items()) and all(
            self._tensor(ref).nbytes == ref.nbytes for refs in self._refs.values() for ref in refs
        )
        if index is not None and same:
            file = self.checkpoint.source.open(index)
            return index, file.read_at(0, file.size)
        weight_map = {ref.name: names[ref.shard] for refs in self._refs.values() for ref in refs}
        total = sum(self._tensor(ref).nbytes for refs in self._refs.values() for ref in refs)
        return "model.safetensors.index.json", index_document(weight_map, total)

    def _is_safetensors(self, name: str) -> bool:
        """Whether a shard is a safetensors file that holds these tensors and no others."""
        info = next(info for info in self.checkpoint.shards if info.name == name)
        return name.endswith(".safetensors") and info.tensors == len(self._refs[name])

    def _new_name(self, name: str) -> str:
        if name.endswith(".safetensors"):
            return name
        place, count = list(self._refs).index(name) + 1, len(self._refs)
        return f"model-{place:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"

    def _tensor(self, ref: TensorRef) -> OutputTensor:
        change = self.changes.get(ref.name)
        stored = DTYPES.get(ref.dtype)
        wanted = torch.float32 if ref.name in self.kept else self.dtype
        casts = wanted is not None and ref.is_floating and stored is not wanted
        dtype = wanted if casts else stored
        if change is None and not casts and ref.strides is None:
            content = FileRange(
                self._paths[ref.shard], ref.span.start, self.checkpoint.identities.get(ref.shard)
            )
            return OutputTensor(ref.name, ref.dtype, ref.shape, content)
        if dtype is None:
            raise AssertionError(ref.dtype)
        new = None if change is None else change.replacement
        shape = ref.shape if new is None else tuple(new.shape)
        return OutputTensor(ref.name, CODES[dtype], shape, partial(self._blocks, ref, change, dtype))

    def _blocks(self, ref: TensorRef, change: Change | None, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield a tensor's blocks: what is changed folded in, the rest cast. The file's pages are let go after."""
        expected = self.checkpoint.identities.get(ref.shard)
        with Shard(self._paths[ref.shard], expected=expected) as shard:
            base = shard.tensor(ref)
            if change is None:
                for rows in row_blocks(ref.shape) if ref.shape else [...]:
                    yield base[rows].to(dtype).contiguous()
            else:
                survival = Survival()
                rounding = Rounding(self.rounding, self.seed, ref.name)
                for _, block in merged_blocks(base, change, dtype, rounding, survival, self.workers):
                    yield block
                self.rows[ref.name] = change.row(ref.shape, dtype, survival)
            shard.release(ref)


def _is_same_range(tensor: OutputTensor, ref: TensorRef) -> bool:
    return isinstance(tensor.content, FileRange) and tensor.dtype == ref.dtype
