"""Streams weights into a model as its plan says, with one shard open at a time."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from shardload._system.gc_freeze import gc_frozen
from shardload._system.process_memory import measure, size_of
from shardload._system.progress import ProgressMeter
from shardload.checkpoint.shard import reading_order
from shardload.keymap.assembly import Joins
from shardload.loading.claims import Claims
from shardload.loading.report import ShardRow
from shardload.loading.spans import asked_ahead, expected_spans, spans_of, whole_shards
from shardload.loading.subtrees import Subtrees
from shardload.placement.target import Target
from shardload.tensor_ref import TensorRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from typing_extensions import Self

    from shardload._system.progress import ProgressOption
    from shardload._system.read_ahead import ReadAhead
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.checkpoint.shard import AnyShard
    from shardload.compare.verify import VerifiedWhileLoading
    from shardload.loading.class_values import ClassValues
    from shardload.loading.judge import Comparison
    from shardload.loading.read_once import ReadOnce
    from shardload.placement.layout import Layout
    from shardload.placement.target import Release

Pairs = list[tuple[str, TensorRef]]

_WORTH_ASKING = 2**23  # bytes: fewer are read in the time that it takes to ask the kernel


def stream(
    comparison: Comparison,
    target: Target,
    values: ClassValues | None = None,
    *,
    copy: bool,
    progress: ProgressOption,
    verified: VerifiedWhileLoading | None = None,
    once: ReadOnce | None = None,
) -> set[str]:
    """Load every tensor of the plan into the model, and return the names that were filled.

    The report gets a row per shard. `values` are the class's own, for loaders that fill a parameter in part. `verified`
    is told about every shard as soon as the shard is on the local disk. With `once` a rank may get what another reads.
    """
    by_shard = _by_shard(comparison)
    if once is not None:
        by_shard = {name: once.in_order(pairs) for name, pairs in by_shard.items()}
    total = sum(ref.nbytes for pairs in by_shard.values() for _, ref in pairs)
    report = comparison.report
    shows = progress or (progress is None and sys.stderr.isatty())
    with (
        ProgressMeter(progress, total) if shows else nullcontext() as meter,
        _Stream(comparison, target, values, copy, verified, once) as carrier,
        _asked_ahead(comparison, by_shard, once) if total >= _WORTH_ASKING else nullcontext(),
        _streamed(comparison.checkpoint, by_shard, once) as carrier.streamed,
    ):
        for name, pairs in by_shard.items():
            started = time.perf_counter()
            if meter is not None:
                meter.shard(name)
            carrier.shard(name, pairs, meter)
            now = measure()
            nbytes = sum(ref.nbytes for _, ref in pairs)
            seconds = time.perf_counter() - started
            report.shards.append(ShardRow(name, len(pairs), nbytes, seconds, now.anon, now.file))
        carrier.without_parts()
    report.loaded = carrier.loaded
    report.nbytes = total
    if once is not None:
        report.nbytes -= once.received
        report.notes.append(f"{size_of(once.received)} came from ranks that read them")
    report.dtypes = {str(dtype).removeprefix("torch."): n for dtype, n in carrier.dtypes.most_common()}
    report.seconds["fill"] = sum(row.seconds for row in report.shards)
    return carrier.filled


@gc_frozen
def _by_shard(comparison: Comparison) -> dict[str, Pairs]:
    """Group the tensors to read by shard, in the order of their bytes."""
    return reading_order(comparison.plan.tensors, (shard.name for shard in comparison.checkpoint.shards))


def expected_ahead(
    checkpoint: Checkpoint, layout: Layout | None, read: str
) -> AbstractContextManager[ReadAhead | None]:
    """Ask the kernel for what headers say that a load will read, while its model is built in the block.

    It ends with the block, as a plan may want less. `stream` then asks for what the plan says and is not there yet.
    """
    if checkpoint.nbytes < _WORTH_ASKING:
        return nullcontext()
    return asked_ahead(checkpoint, expected_spans(checkpoint, layout, read), only_inside=True)


def _asked_ahead(comparison: Comparison, by_shard: Mapping[str, Pairs], once: ReadOnce | None) -> ReadAhead:
    """Ask the kernel for the bytes that this process reads."""
    checkpoint = comparison.checkpoint
    if not comparison.plan.parts:
        return asked_ahead(checkpoint, whole_shards(checkpoint, by_shard))
    spans = {
        name: spans_of(ref for key, ref in pairs if once is None or once.reads(key))
        for name, pairs in by_shard.items()
    }
    return asked_ahead(checkpoint, spans)


@contextmanager
def _streamed(
    checkpoint: Checkpoint, by_shard: Mapping[str, Pairs], once: ReadOnce | None
) -> Iterator[Mapping[str, AnyShard]]:
    """Yield what reads the shards that do not come onto this disk: one for all, which goes on to the next in time."""
    source = checkpoint.source
    names = [name for name in by_shard if source.open(name).is_streamed] if source.is_streamed else []
    if not names:
        yield {}
        return
    wanted = (pair for name in names for pair in by_shard[name])
    refs = [ref for key, ref in wanted if once is None or once.reads(key)]
    with checkpoint._opened(names[0], refs) as shard:
        yield dict.fromkeys(names, shard)


class _Stream:
    """Loads the tensors of a plan, shard by shard. `joins`, `claims` and `subtrees` are None when the plan has none."""

    def __init__(
        self,
        comparison: Comparison,
        target: Target,
        values: ClassValues | None,
        copy: bool,
        verified: VerifiedWhileLoading | None,
        once: ReadOnce | None,
    ) -> None:
        plan = comparison.plan
        self.comparison = comparison
        self.target = target
        self.copy = copy
        self.streamed: Mapping[str, AnyShard] = {}
        self.filled: set[str] = set()
        self.loaded = 0
        self.dtypes: Counter[torch.dtype] = Counter()
        self.tied = {name: group for group in comparison.shell.ties for name in group}
        self.verified = verified
        self.once = once
        self.joins = Joins(plan.tensors) if plan.held.joined else None
        self.claims = Claims(plan, target) if plan.claims else None
        self.subtrees = (
            Subtrees(comparison, target, values, self._count, copy=copy)
            if comparison.tree.self_loading
            else None
        )
        # A target without its own `put` saves a method call per tensor: most models have many small tensors.
        self.put = None if type(target).put is Target.put else target.put

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.target.close()

    @gc_frozen
    def shard(self, name: str, pairs: Pairs, meter: ProgressMeter | None) -> None:
        """Load the tensors of one shard, one after another."""
        once = self.once
        if once is not None and not any(once.reads(key) for key, _ in pairs):
            for key, ref in pairs:
                self._take(key, ref, once.tensor(key, ref, None), None, meter)
            self.target.wait()
            return
        checkpoint = self.comparison.checkpoint
        if self.verified is not None:
            self.verified.begin(name, checkpoint.source.open(name).local_path())
        streamed = self.streamed.get(name)
        with nullcontext(streamed) if streamed else checkpoint._opened(name, copy=self.copy) as shard:
            for key, ref in pairs:
                read = shard.tensor(ref) if once is None else once.tensor(key, ref, shard)
                self._take(key, ref, read, shard, meter)
            self.target.wait()

    def _take(
        self,
        key: str,
        ref: TensorRef,
        read: torch.Tensor,
        shard: AnyShard | None,
        meter: ProgressMeter | None,
    ) -> None:
        """Join a part with the others of its tensor, or load it."""
        if self.joins is not None and key in self.joins:
            for done in self.joins.take(key, ref, read):
                if shard is not None and done.shard == ref.shard:
                    shard.release(done)
            whole = self.joins.pop(key)
            if whole is not None:
                self._deliver(key, whole, None)
        else:
            self._deliver(key, read, None if shard is None else partial(shard.release, ref))
        if meter is not None:
            meter.tensor(ref.nbytes)

    def without_parts(self) -> None:
        """Load what no shard contains: joined tensors of padding alone, and subtrees whose loaders get no tensor."""
        if self.joins is not None:
            for key, tensor in self.joins.without_parts():
                self._deliver(key, tensor, None)
            self.target.wait()
        if self.subtrees is not None:
            self.subtrees.without_tensors()

    def _deliver(self, key: str, stored: torch.Tensor, release: Release | None) -> None:
        """Pass a tensor on to its claim or its self-loading subtree; load the tensor of a plain module."""
        if self.claims is not None and key in self.comparison.plan.claimed:
            self._fill(self.claims.take(key, stored))
            return
        if self.subtrees is not None:
            root = self.comparison.tree.root_of(key)
            if root is not None:
                self.subtrees.deliver(root, key, stored)
                return
        self._load(key, stored, release)

    def _fill(self, made: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Assign the tensors that the target made for a claim."""
        for key, tensor in made:
            self._assign(key, tensor)
            self._count(key, tensor.dtype)

    def _load(self, key: str, stored: torch.Tensor, release: Release | None) -> None:
        """Place and assign one tensor of a plain module. The second copy of a tied tensor is skipped."""
        if key in self.tied and self.filled.intersection(self.tied[key]):
            self.loaded += 1
            return
        placed = self.target.begin(key, stored, release)
        if placed is stored and key in self.comparison.plan.copied:
            # Read with copy=True it is memory of its own; only one that is expanded has an element at several places.
            placed = stored.clone() if not self.copy or 0 in stored.stride() else stored
        self._assign(key, placed)
        self._count(key, stored.dtype)

    def _count(self, key: str, dtype: torch.dtype) -> None:
        self.filled.add(key)
        self.loaded += 1
        self.dtypes[dtype] += 1

    def _assign(self, key: str, tensor: torch.Tensor) -> None:
        prefix, _, name = key.rpartition(".")
        module = self._module(f"{prefix}." if prefix else "")
        shape = self.comparison.shell.slots[key].shape
        if tensor.shape != shape and type(tensor) is torch.Tensor and key not in self.comparison.plan.parts:
            tensor = tensor.view(shape)  # one of another class has the shape that its target gave it
        if self.put is not None:
            self.put(module, name, tensor)
            return
        old = module._parameters.get(name)
        if type(module).__setattr__ is not nn.Module.__setattr__:
            self.target.put(module, name, tensor)
        elif old is None:
            module._buffers[name] = tensor
        else:  # as nn.Parameter does for a plain tensor, without its checks: 1 µs less per tensor
            module._parameters[name] = torch.Tensor._make_subclass(nn.Parameter, tensor, old.requires_grad)

    def _module(self, prefix: str) -> nn.Module:
        found = self.comparison.tree.plain.get(prefix)
        return found if found is not None else self.comparison.shell.model.get_submodule(prefix[:-1])
