"""Loads subtrees that load themselves: keeps the tensors of each until it is complete, then runs its loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.errors import ShardloadError
from shardload.keymap import Derived
from shardload.loading.in_place import StandIns
from shardload.loading.mismatch import mismatch
from shardload.loading.rehearsal import failure, faults_of
from shardload.model.module_loaders import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardload.loading.class_values import ClassValues
    from shardload.loading.fault import Fault
    from shardload.loading.judge import Comparison
    from shardload.model.module_tree import SelfLoading
    from shardload.placement.target import Target


class Subtrees:
    """The self-loading subtrees of one load. `filled` is called with the name and dtype of each assigned tensor."""

    def __init__(
        self,
        comparison: Comparison,
        target: Target,
        values: ClassValues | None,
        filled: Callable[[str, torch.dtype], None],
        *,
        copy: bool,
    ) -> None:
        self._comparison = comparison
        self._target = target
        self._filled = filled
        self._copy = copy
        self._stand_ins = StandIns(values.values if values is not None else {}, comparison.plan.in_place)
        self._roots = {root.prefix: root for root in comparison.tree.self_loading}
        handed = comparison.plan.handed
        self._waiting = {prefix: _tensor_count(handed[prefix]) for prefix in self._roots}
        self._arrived: dict[str, dict[str, torch.Tensor]] = {prefix: {} for prefix in self._roots}
        self._count = 0

    def deliver(self, root: str, key: str, stored: torch.Tensor) -> None:
        """Keep a tensor of a subtree; load the subtree when the tensor is its last one."""
        plan = self._comparison.plan
        if key in plan.copied and not self._copy:
            stored = stored.clone()
        elif key in plan.turned:
            # The loader may expect contiguous tensors, as a converted file has them.
            stored = stored.contiguous()
        self._arrived[root][key] = stored
        self._waiting[root] -= 1
        if self._waiting[root] == 0:
            self._walk(self._roots[root])

    def without_tensors(self) -> None:
        """Load the subtrees that get no tensor: they may have an extra state, or need no key at all."""
        for prefix, root in self._roots.items():
            if _tensor_count(self._comparison.plan.handed[prefix]) == 0:
                self._walk(root)

    def _walk(self, root: SelfLoading) -> None:
        """Let a subtree load itself from its entries, in the checkpoint's order."""
        comparison = self._comparison
        entries = comparison.plan.handed[root.prefix]
        arrived = self._arrived.pop(root.prefix)
        state = {key: arrived[key] if isinstance(value, Derived) else value for key, value in entries.items()}
        before = self._count
        try:
            with torch.no_grad():
                result = walk(root.module, root.prefix, state, comparison.versions, self._visit)
        except ShardloadError:
            raise
        except Exception as error:
            raise mismatch(comparison.report, [failure(root, error)]) from error
        faults = self._new_faults(faults_of(result, entries, comparison.shell, []))
        if faults:
            raise mismatch(comparison.report, faults)
        handed, took = _tensor_count(entries), self._count - before
        if handed != took:
            comparison.report.notes.append(
                f"{root.label}: {root.why} was handed {handed} tensors and filled {took} tensors of the model"
            )

    def _new_faults(self, faults: list[Fault]) -> list[Fault]:
        """Return the faults that the rehearsal could not show: neither allowed, nor tied, nor made by the target."""
        report, shell, plan = self._comparison.report, self._comparison.shell, self._comparison.plan
        settled = {fault.key for group in report.allowed.values() for fault in group} | plan.made.keys()
        tied = {name for group in shell.ties for name in group}
        return [f for f in faults if f.key not in settled and not (f.kind == "missing" and f.key in tied)]

    def _visit(self, module: nn.Module, prefix: str) -> Callable[[], None]:
        before = {**module._parameters, **module._buffers}
        loans = self._stand_ins.lend(module, prefix)

        def leave() -> None:
            left = {loan.name for loan in loans if loan.is_untouched}
            for loan in loans:
                loan.settle()
            for slots in (module._parameters, module._buffers):
                for name, value in slots.items():
                    if value is None or value.is_meta or value is before.get(name):
                        continue
                    if self._settle(module, slots, prefix, name, value) and name not in left:
                        self._count += 1
                        self._filled(prefix + name, value.dtype)

        return leave

    def _settle(
        self, module: nn.Module, slots: dict[str, Any], prefix: str, name: str, value: torch.Tensor
    ) -> bool:
        """Let the target place a tensor that a module has just assigned; return False for a computed tensor."""
        slot = self._comparison.shell.slots.get(prefix + name)
        if slot is not None and not slot.is_stored:
            return False
        bare = value.detach()
        placed = self._target.place(prefix + name, bare)
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
