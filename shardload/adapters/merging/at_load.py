"""Merging while a base is loaded: each delta is folded in as its tensor streams by, before its only cast."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import torch

from shardload.adapters.match import judge
from shardload.adapters.merging.change import merged_blocks
from shardload.adapters.merging.changes import Changes, add_changes
from shardload.adapters.merging.rounding import Rounding
from shardload.adapters.merging.survival import MergedTensor, Survival, warnings_of
from shardload.adapters.merging.workers import Workers
from shardload.adapters.source import read_content
from shardload.adapters.values import read_values
from shardload.errors import Cures, UnsupportedError, Wording
from shardload.keymap.derived import decoded_to
from shardload.placement.taken import Taken
from shardload.placement.target import TargetAround
from shardload.tensor_ref import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from shardload.adapters.adapter import AdapterFile
    from shardload.adapters.adapter_report import AdapterReport
    from shardload.keymap import Derived
    from shardload.model.shell import Shell
    from shardload.placement.target import Claim, Release, Target

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def judge_before_load(model: nn.Module, file: AdapterFile) -> list[Derived]:
    """Judge an adapter, headers and values, by a model that has no weights yet: what is wrong is said before the load.

    Returns its tensors as the model has them. Raises what `load_adapter` raises. What only the weights tell (PiSSA,
    OLoRA) is left to it.
    """
    content = read_content(file)
    if any(entry.initial is not None for entry in content.loras):
        return list(file.checkpoint.tensors.values())
    report, match = judge(model, file, content, "default", strict=True)
    read_values(file, match, report, as_stored=True)
    return [ref for layer in match.layers for ref in layer.entry.refs()] + [
        each.entry.ref for each in match.replaced
    ]


class MergingTarget(TargetAround):
    """A target that folds an adapter into the tensors that it changes, and leaves the rest to the target inside.

    `dtype` is what floating tensors are cast to, None for their stored dtypes: a changed tensor is computed in fp32
    and rounded once to it, in blocks of rows, so that nothing but the result is in memory.
    """

    def __init__(self, inner: Target, dtype: torch.dtype | None, changes: Changes) -> None:
        super().__init__(inner)
        self.dtype = dtype
        self.changes = changes
        self.spill = inner.spill
        self.packed = False  # set where weights stay as bitsandbytes packed them
        self.rows: dict[str, MergedTensor] = {}
        self._workers = Workers()
        self.work_space = inner.work_space + self._workers.work_space

    @property
    def assigns(self) -> bool:
        """Whether the target inside assigns tensors itself."""
        return self.inner.assigns

    def takes(self, stored: Mapping[str, Derived]) -> bool:
        """Whether packed weights stay as they are stored; else they are made plain, and the changes added."""
        return self.packed and self.inner.takes(stored)

    def part(self, key: str, tensor: Derived) -> Derived:
        """Return what the target inside reads; all of a tensor that the adapter changes, in float32 if it is packed."""
        if key not in self.changes:
            return self.inner.part(key, tensor)
        return cast("Derived", decoded_to(tensor, "F32"))

    def result_bytes(self, key: str, tensor: Derived) -> Taken:
        """Return what the target inside takes; for a changed tensor its result, anonymous or in the spill's file."""
        if key not in self.changes:
            return self.inner.result_bytes(key, tensor)
        dtype = self.dtypes.get(key, self.dtype)
        bits = DTYPE_BITS[tensor.dtype] if dtype is None else 8 * dtype.itemsize
        nbytes = tensor.numel * bits // 8
        return Taken(anonymous=nbytes) if self.spill is None else Taken(spilled=nbytes)

    def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """Return the tensor that fills `key`, with its change folded in if there is one."""
        return self.inner.place(key, self._merged(key, stored))

    def begin(self, key: str, stored: torch.Tensor, release: Release | None) -> torch.Tensor:
        """Return what `place` returns; what is not changed may still be worked on."""
        merged = self._merged(key, stored)
        if merged is stored:
            return self.inner.begin(key, stored, release)
        if release is not None:
            release(0, stored.nbytes)
        return self.inner.place(key, merged)

    def make(self, claim: Claim, parts: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return what the target inside makes of a claim, with the adapter's changes folded in."""
        return {key: self._merged(key, tensor) for key, tensor in self.inner.make(claim, parts).items()}

    def put(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        """Assign as the target inside does."""
        self.inner.put(module, name, tensor)

    def close(self) -> None:
        """Close the target inside, and end the workers."""
        self._workers.close()
        self.inner.close()

    def finish(self, model: nn.Module) -> None:
        """Finish the target inside, then fold in what no stored tensor came for."""
        self.inner.finish(model)
        done = {id(self.changes[name]) for name in self.rows}
        for name in [name for name, change in self.changes.items() if id(change) not in done]:
            path, _, attribute = name.rpartition(".")
            parameter: Any = model.get_submodule(path)._parameters[attribute]
            parameter.data = self._merged(name, parameter.data)
        self._workers.close()

    def _merged(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        change = self.changes.get(key)
        if change is None:
            return stored
        if stored.dtype not in _FLOATING:
            raise no_room(key, str(stored.dtype), packed=self.packed)
        dtype = self.dtypes.get(key, self.dtype) or stored.dtype
        if self.spill is not None and stored.device.type == "cpu" and stored.numel():
            result = self.spill.empty(stored.shape, dtype)
        else:
            result = torch.empty(stored.shape, dtype=dtype, device=stored.device)
        survival, rounding = Survival(), Rounding("nearest", 0, key)
        for index, block in merged_blocks(stored, change, dtype, rounding, survival, self._workers):
            result[index] = block
        self.rows[key] = change.row(tuple(stored.shape), dtype, survival)
        return result


def plan_merge(shell: Shell, file: AdapterFile) -> tuple[Changes, AdapterReport]:
    """Judge an adapter by a shell, and return what it changes by the model's names, with its report so far.

    Raises what `load_adapter` raises, and UnsupportedError for what can only be merged into a loaded model: tied
    weights that the adapter changes one of, repeated layers, resized vocabularies.
    """
    start = time.perf_counter()
    content = read_content(file)
    report, match = judge(shell.model, file, content, "default", strict=True)
    if content.replication or any(found.resized for found in match.replaced):
        what = (
            "repeats the layers of the base" if content.replication else "resizes the vocabulary of the base"
        )
        raise UnsupportedError(
            f"the adapter {what}, which has to be loaded for it",
            where=file.label,
            cure=_cures_apart(),
        )
    changes: Changes = {}
    add_changes(changes, file, match, report)
    for found in match.replaced:
        # A saved copy of tied weights is one for all of them; a delta on top of it is for one alone.
        if found.entry.tied and not changes[found.name].apart:
            _also(changes, found.name, _ties_of(shell, found.name))
    _follow_ties(shell, changes)
    report.seconds = time.perf_counter() - start
    return changes, report


def no_room(name: str, dtype: str, *, packed: bool) -> UnsupportedError:
    """Return the error for a change of a tensor of whole numbers; `packed` ones can be made plain."""
    plain = Wording(
        "pass {dtype}, or float16 or float32: the weights are made plain in it, and the delta is added before they "
        "are quantised again, if that is asked for",
        dtype="bfloat16",
    )
    anew = ": that quantises the sums anew" if packed else ""
    return UnsupportedError(
        f"the adapter changes a tensor of dtype {dtype}: it has no room for a delta",
        where=name,
        cure=Cures(*([plain] if packed else []), *_cures_apart(anew).parts),
    )


def _cures_apart(note: str = "") -> Cures:
    """Return the cures of a merge that needs the loaded model: in Python a merge after the load, anywhere none."""
    return Cures(
        Wording("load it with {merge}, and call merge(model){0}", note, merge=False),
        Wording("leave out {merge}: the adapter is attached, and works unmerged", merge=True),
    )


def finish_report(report: AdapterReport, target: MergingTarget) -> AdapterReport:
    """Note in an adapter's report that it was merged, and how much of it survived the rounding."""
    report.merged = True
    rows = list(target.rows.values())
    report.least_share = min((row.share for row in rows if row.share is not None), default=None)
    report.warnings += tuple(
        warnings_of(
            rows,
            cure=Cures(Wording("pass {dtype}", dtype="float32"), Wording("attach it: {merge}", merge=False)),
        )
    )
    return report


def _ties_of(shell: Shell, name: str) -> list[str]:
    return [other for group in shell.ties if name in group for other in group if other != name]


def _also(changes: Changes, name: str, others: list[str]) -> None:
    for other in others:
        changes.setdefault(other, changes[name])


def _follow_ties(shell: Shell, changes: Changes) -> None:
    """Give a change to all names of a tied parameter where it is for all of them; refuse one that is not."""
    apart = []
    for name, change in list(changes.items()):
        ties = _ties_of(shell, name)
        if ties and change.apart and not all(changes.get(other) is change for other in ties):
            apart.append(f"{name} (tied to {', '.join(ties)})")
        else:
            _also(changes, name, ties)
    if apart:
        raise UnsupportedError(
            "the adapter changes one of several tied weights, and merged into the load it would change all",
            where="; ".join(apart),
            cure=_cures_apart(": that takes them apart"),
        )
