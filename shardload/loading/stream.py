"""The stream: carries a plan out, one shard open at a time."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload._system.process_memory import measure
from shardload._system.progress import ProgressMeter
from shardload._system.read_ahead import ReadAhead
from shardload.checkpoint.items import reading_order
from shardload.checkpoint.shard import Shard
from shardload.errors import ShardloadError
from shardload.keymap import Derived
from shardload.keymap.assembly import Joins
from shardload.loading.in_place import StandIns
from shardload.loading.judge import mismatch
from shardload.loading.rehearsal import failure, faults_of
from shardload.loading.report import ShardRow
from shardload.model.module_loaders import Root, walk
from shardload.placement.target import OverlappingTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

    from shardload._system.progress import ProgressOption
    from shardload.compare.verify import VerifiedWhileLoading
    from shardload.loading.judge import Comparison
    from shardload.loading.plan import Fault
    from shardload.placement.target import Release, Target
    from shardload.tensor_ref import TensorRef

Pairs = list[tuple[str, "TensorRef"]]


def stream(
    comparison: Comparison,
    target: Target,
    *,
    copy: bool,
    progress: ProgressOption,
    verified: VerifiedWhileLoading | None = None,
) -> set[str]:
    """Move every planned tensor into the model and return the names that were filled; rows go to the report.

    `verified` is told of every shard as soon as it is at hand.
    """
    by_shard = _by_shard(comparison)
    total = sum(ref.nbytes for pairs in by_shard.values() for _, ref in pairs)
    report = comparison.report
    with (
        ProgressMeter(progress, total) as meter,
        ReadAhead() as ahead,
        _Stream(comparison, target, copy, ahead, verified) as carrier,
    ):
        for name, pairs in by_shard.items():
            started = time.perf_counter()
            meter.shard(name)
            carrier.shard(name, pairs, meter)
            now = measure()
            nbytes = sum(ref.nbytes for _, ref in pairs)
            seconds = time.perf_counter() - started
            report.shards.append(ShardRow(name, len(pairs), nbytes, seconds, now.anon, now.file))
        carrier.without_parts()
        carrier.roots_without_tensors()
    report.loaded = carrier.loaded
    report.nbytes = total
    report.dtypes = {str(dtype).removeprefix("torch."): n for dtype, n in carrier.dtypes.most_common()}
    report.seconds["fill"] = sum(row.seconds for row in report.shards)
    return carrier.filled


def _by_shard(comparison: Comparison) -> dict[str, Pairs]:
    """Group what is read by shard, in the order of the bytes."""
    return reading_order(comparison.plan.tensors, (shard.name for shard in comparison.checkpoint.shards))


class _Stream:
    """Carries a plan out, shard by shard."""

    def __init__(
        self,
        comparison: Comparison,
        target: Target,
        copy: bool,
        ahead: ReadAhead,
        verified: VerifiedWhileLoading | None,
    ) -> None:
        self.comparison = comparison
        self.target = target
        self.overlapping = target if isinstance(target, OverlappingTarget) else None
        self.copy = copy
        self.filled: set[str] = set()
        self.loaded = 0
        self.dtypes: Counter[torch.dtype] = Counter()
        self.tied = {name: group for group in comparison.shell.ties for name in group}
        self.stand_ins = StandIns(comparison.shell, comparison.plan.in_place)
        self.ahead = ahead
        self.verified = verified
        self.joins = Joins(comparison.plan.tensors)
        # What a subtree with its own loader still waits for, and what has come for it so far.
        self.waiting = {
            root.prefix: _tensor_count(comparison.plan.handed[root.prefix]) for root in comparison.zones.roots
        }
        self.arrived: dict[str, dict[str, torch.Tensor]] = {
            root.prefix: {} for root in comparison.zones.roots
        }
        self.roots = {root.prefix: root for root in comparison.zones.roots}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.overlapping:
            self.overlapping.close()

    def shard(self, name: str, pairs: Pairs, meter: ProgressMeter) -> None:
        """Load one shard: plain modules tensor by tensor, subtrees with their own loaders once they are complete."""
        checkpoint = self.comparison.checkpoint
        path = checkpoint.source.open(name).local_path()
        if self.verified is not None:
            self.verified.begin(name, path)
        with Shard(path, copy=self.copy, expected=checkpoint.identities.get(name)) as shard:
            shard.read_ahead(self.ahead)
            for key, ref in pairs:
                read = shard.tensor(ref)
                stored: torch.Tensor | None = read
                release: Release | None = partial(shard.release, ref)
                if key in self.joins:
                    stored = self.joins.pop(key) if self.joins.take(key, ref, read) else None
                    shard.release(ref)
                    release = None
                if stored is not None:
                    self._deliver(key, stored, release)
                meter.tensor(ref.nbytes)
            if self.overlapping:
                self.overlapping.wait()

    def without_parts(self) -> None:
        """Load tensors that a key map makes of nothing that is stored."""
        for key, tensor in self.joins.without_parts():
            self._deliver(key, tensor, None)
        if self.overlapping:
            self.overlapping.wait()

    def _deliver(self, key: str, stored: torch.Tensor, release: Release | None) -> None:
        """Load a tensor of a plain module; keep one of a subtree with its own loader until the last has come."""
        root = self.comparison.zones.root_of(key)
        if root is None:
            self._load(key, stored, release)
            return
        if key in self.comparison.plan.copied:
            stored = stored.clone()
        elif key in self.comparison.plan.turned:
            stored = stored.contiguous()  # its loader may count on what a converted file would give
        self.arrived[root][key] = stored
        self.waiting[root] -= 1
        if self.waiting[root] == 0:
            self._walk(self.roots[root])

    def roots_without_tensors(self) -> None:
        """Run loaders that were handed no tensor: an extra state, or keys that they may do without."""
        for prefix, root in self.roots.items():
            if _tensor_count(self.comparison.plan.handed[prefix]) == 0:
                self._walk(root)

    def _load(self, key: str, stored: torch.Tensor, release: Release | None) -> None:
        """Place and assign one tensor of a plain module; a second copy of a tied one, compared before, is left out."""
        if key in self.tied and self.filled.intersection(self.tied[key]):
            self.loaded += 1
            return
        if self.overlapping:
            placed = self.overlapping.begin(key, stored, release)
        else:
            placed = self.target.place(key, stored)
            if placed is not stored and release is not None:
                release(0, stored.nbytes)
        if placed is stored and key in self.comparison.plan.copied:
            placed = stored.clone()
        self._assign(key, placed)
        self._count(key, stored.dtype)

    def _count(self, key: str, dtype: torch.dtype) -> None:
        self.filled.add(key)
        self.loaded += 1
        self.dtypes[dtype] += 1

    def _assign(self, key: str, tensor: torch.Tensor) -> None:
        prefix, _, name = key.rpartition(".")
        module = self.comparison.zones.plain[f"{prefix}." if prefix else ""]
        shape = self.comparison.shell.slots[key].shape
        if tensor.shape != shape:
            tensor = tensor.view(shape)
        old = module._parameters.get(name)
        # What nn.Parameter does with a plain tensor, without its questions: 1 µs a tensor less.
        value = (
            tensor if old is None else torch.Tensor._make_subclass(nn.Parameter, tensor, old.requires_grad)
        )
        if type(module).__setattr__ is nn.Module.__setattr__:
            slots: dict[str, Any] = module._buffers if old is None else module._parameters
            slots[name] = value
        else:
            setattr(module, name, value)  # RNNs keep a list of their weights beside the parameters

    def _walk(self, root: Root) -> None:
        """Let a subtree load itself from everything that came for it, in the checkpoint's order."""
        entries = self.comparison.plan.handed[root.prefix]
        arrived = self.arrived.pop(root.prefix)
        state = {key: arrived[key] if isinstance(value, Derived) else value for key, value in entries.items()}
        loaded = self.loaded
        try:
            with torch.no_grad():
                result = walk(root.module, root.prefix, state, self.comparison.versions, self._visit)
        except ShardloadError:
            raise
        except Exception as error:
            raise mismatch(self.comparison.report, [failure(root, error)]) from error
        faults = self._new_faults(faults_of(result, entries, self.comparison.shell, []))
        if faults:
            raise mismatch(self.comparison.report, faults)
        handed, took = _tensor_count(entries), self.loaded - loaded
        if handed != took:
            where = root.prefix[:-1] or "the model itself"
            self.comparison.report.notes.append(
                f"{where}: {root.why} was handed {handed} tensors and filled {took} of the model's"
            )

    def _new_faults(self, faults: list[Fault]) -> list[Fault]:
        """Leave out what the judgement allowed; what is left only showed with values."""
        allowed = {f.key for group in self.comparison.report.allowed.values() for f in group}
        tied = {name for group in self.comparison.shell.ties for name in group}
        return [f for f in faults if f.key not in allowed and not (f.kind == "missing" and f.key in tied)]

    def _visit(self, module: nn.Module, prefix: str) -> Callable[[], None]:
        before = {**module._parameters, **module._buffers}
        loans = self.stand_ins.lend(module, prefix)

        def leave() -> None:
            left = {loan.name for loan in loans if loan.is_untouched}
            for loan in loans:
                loan.settle()
            for slots in (module._parameters, module._buffers):
                for name, value in slots.items():
                    if value is None or value.is_meta or value is before.get(name):
                        continue
                    if self._settle(module, slots, prefix, name, value) and name not in left:
                        self._count(prefix + name, value.dtype)

        return leave

    def _settle(
        self, module: nn.Module, slots: dict[str, Any], prefix: str, name: str, value: torch.Tensor
    ) -> bool:
        """Give the target its say over what a module has just assigned; False for what it computes itself."""
        slot = self.comparison.shell.slots.get(prefix + name)
        if slot is not None and not slot.is_stored:
            return False
        bare = value.detach()
        placed = self.target.place(prefix + name, bare)
        if placed is not bare:
            if isinstance(value, nn.Parameter):
                placed = nn.Parameter(placed, requires_grad=value.requires_grad)
            if type(module).__setattr__ is nn.Module.__setattr__:
                slots[name] = placed
            else:
                setattr(module, name, placed)
        return True


def _tensor_count(entries: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Derived) for value in entries.values())
