"""An adapter that is wanted on a model: judged by the shell before a weight of the base is read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shardload.adapters import load_adapter
from shardload.adapters.merging.at_load import (
    MergingTarget,
    finish_report,
    judge_before_load,
    no_room,
    plan_merge,
)
from shardload.adapters.source import open_adapter
from shardload.dtypes import float_code
from shardload.errors import UsageError, Wording
from shardload.loading.memory_plan import Statement
from shardload.placement.taken import code_after_cast, taken_on_device
from shardload.tensor_ref import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from shardload.adapters.adapter_report import AdapterReport
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keymap import Derived
    from shardload.loading.memory_plan import MemoryPlan
    from shardload.model.shell import Shell
    from shardload.placement.device import OnDevice
    from shardload.placement.target import Target
    from shardload.where import Where


class AdapterOnLoad:
    """An adapter for a model that is about to be filled: merged into the weights as they stream by, or attached after.

    Judged when it is made: raises what `load_adapter` raises. A shell that an engine shards next gets it `early`.
    """

    def __init__(
        self, shell: Shell, where: Where, target: Target, *, merge: bool, early: bool = False
    ) -> None:
        self._where = where
        self._file = open_adapter(where)
        self._merging: MergingTarget | None = None
        self.target = target
        self._attached: AdapterReport | None = None
        self._tensors: list[Derived] = []
        if early:
            self._attached = load_adapter(shell.model, where)
        elif merge:
            changes, self._report = plan_merge(shell, self._file)
            self._tensors = list(self._file.checkpoint.tensors.values())
            self._merging = self.target = MergingTarget(target, getattr(target, "dtype", None), changes)
        else:
            self._tensors = judge_before_load(shell.model, self._file)

    def state(self, base: Mapping[str, Derived], code: str | None, device: str) -> None:
        """Let the target's statement count the adapter's own tensors."""
        self.target.beside += adapter_memory(self._tensors, base.values(), code, device).anonymous

    def leave_packed(self, stored: Mapping[str, Derived]) -> None:
        """Let weights stay packed as they are stored. Raises UnsupportedError for those that the adapter changes."""
        assert self._merging is not None
        self._merging.packed = True
        for name in self._merging.changes:
            ref = stored.get(name)
            if ref is not None and not ref.is_floating:
                raise no_room(name, ref.dtype, packed=True)

    def finish(self, model: nn.Module) -> AdapterReport:
        """Attach what was not merged; return the adapter's report."""
        if self._attached is not None:
            return self._attached
        if self._merging is None:
            return load_adapter(model, self._where)
        return finish_report(self._report, self._merging)


def adapter_on_load(
    shell: Shell,
    checkpoint: Checkpoint,
    adapter: Where | None,
    target: OnDevice,
    *,
    merge: bool,
    early: bool,
    packed: bool = False,
) -> AdapterOnLoad:
    """Judge the adapter that is wanted on a model; attach it (`early`), or let the statement count it.

    `packed`: weights stay packed as they are stored, if the adapter is not to be merged into them.
    """
    if adapter is None:
        what = Wording("{merge} merges an adapter, and there is none", merge=True)
        raise UsageError(what, cure=Wording("pass {adapter}", adapter=...))
    on_top = AdapterOnLoad(shell, adapter, target, merge=merge, early=early)
    if packed and merge:
        on_top.leave_packed(checkpoint.tensors)
    on_top.state(checkpoint.tensors, float_code(target.dtype), target.device.type)
    return on_top


def adapter_memory(
    tensors: Iterable[Derived], base: Iterable[Derived], code: str | None, device: str
) -> MemoryPlan:
    """Return what an adapter's tensors take: they compute in the wider one of their own dtype and the base's."""
    codes = Counter(code_after_cast(tensor, code) for tensor in base if tensor.is_floating)
    common = codes.most_common(1)[0][0] if codes else None
    statement = Statement(())
    for ref in tensors:
        wide = _wider(ref.dtype, common) if ref.is_floating and common else ref.dtype
        statement.add(ref, taken_on_device(ref, wide, device=device))
    return statement.plan()


def _wider(one: str, other: str) -> str:
    if one == other:
        return one
    if {one, other} == {"F16", "BF16"}:
        return "F32"
    return max(one, other, key=lambda code: DTYPE_BITS[code])
