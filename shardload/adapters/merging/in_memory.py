"""merge and unmerge: the active adapters folded into a model's own weights, and the weights restored bit for bit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload._system.file_mapping import PrivateMappings
from shardload._system.process_memory import size_of
from shardload._system.warn import warn_caller
from shardload.adapters.adapter import listing
from shardload.adapters.attach import check_unmerged, detach, record_of
from shardload.adapters.layers import kind_of
from shardload.adapters.merging.change import Addition, BiasTerm, Change, merged_blocks
from shardload.adapters.merging.merge_report import MergeReport
from shardload.adapters.merging.merged_weight import MergedWeight, Way
from shardload.adapters.merging.packed_weight import PackedWeight, is_packed, unpackable
from shardload.adapters.merging.rounding import Rounding
from shardload.adapters.merging.survival import MergedTensor, Survival, warnings_of
from shardload.adapters.merging.workers import Workers
from shardload.adapters.switch import LOCK, Choice
from shardload.errors import CorruptError, Cures, UnsupportedError, UsageError, Wording
from shardload.loading.provenance import origin_of
from shardload.model.wrapper_tensors import is_wrapper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardload.adapters.attached import Adapters
    from shardload.adapters.layers import Factors, LoraTerm

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Merge:
    """One merge: the adapters with their weights, and every tensor that it changed."""

    weights: Mapping[str, float]
    changed: list[MergedWeight]


def merge(model: nn.Module, *, keep_copies: bool | None = None, final: bool = False) -> MergeReport:
    """Fold the active adapters into the weights of the layers, in place, until `unmerge`; their layers then run bare.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"], init=False, seed=0)
        >>> x, before = torch.ones(1, 4), model(torch.ones(1, 4))
        >>> report = shardload.merge(model, keep_copies=True)
        >>> torch.allclose(model(x), before, atol=1e-6)
        True

    Each delta is computed in fp32 (fp64 where base or factors are) and rounded once; the report has the share of it
    that survived. Weights of bitsandbytes' modules are dequantised, one at a time, and quantised anew with the delta in
    them, which the report says: of it survives what so few bits can hold. What `unmerge` needs costs nothing for
    weights that came from a shard and are still what it holds: they are read, mapped and cast again, or were mapped and
    stay so. A weight that was changed since, that never came from a shard, or whose shard has changed, is kept as a
    copy: `keep_copies=None` warns of the bytes before it keeps them, True keeps them quietly, False raises UsageError.
    A parameter that other modules share is taken apart: they keep the base's.

    While it is merged, adapters can't be switched, attached or deleted, and `save` writes the merged weights. With
    `final` (the field's merge_and_unload) there is no way back: all adapters are taken off, what the active ones
    replace of the base stays, and the model is a plain one, ready for the next adapter. Raises
    UsageError (nothing is active, or merged already), UnsupportedError with the reasons for layers that can't be
    merged, CorruptError for a result that is not finite: the model is as it was then.
    """
    start = time.perf_counter()
    with LOCK, torch.no_grad():
        adapters = record_of(model)
        check_unmerged(adapters)
        weights = dict(adapters.switch.chosen.weights)
        _check_choice(adapters, weights)
        wanted = _weights_to_change(model, adapters, weights)
        copied = sum(weight.nbytes for weight, _ in wanted if weight.way is Way.COPY)
        if not final:
            _allow_copies(
                copied, [weight.name for weight, _ in wanted if weight.way is Way.COPY], keep_copies
            )
        rows = _change_all(wanted)
        adapters.switch.chosen = Choice({})
        if final:
            copied = 0
            _take_off(model, adapters)
        else:
            adapters.merged = Merge(weights, [weight for weight, _ in wanted])
    report = MergeReport(
        base=type(model).__name__,
        adapters=list(weights),
        dtype="dtypes of the base",
        tensors=rows,
        copied_bytes=copied,
        seconds=time.perf_counter() - start,
    )
    report.warnings += _packed_anew([weight for weight, _ in wanted])
    report.warnings += warnings_of(rows, cure="leave the adapter attached, or load the base in float32 first")
    return report


def _take_off(model: nn.Module, adapters: Adapters) -> None:
    """Take all adapters off a model that runs without them; what they replace of the base now is the base."""
    adapters.replacing = ()
    for name in list(adapters.attached):
        detach(model, name)


def unmerge(model: nn.Module) -> None:
    """Put every weight back to what it was at the moment of the merge, bit for bit; the adapters run again.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"], init=False, seed=0)
        >>> before = model[0].weight.clone()
        >>> report = shardload.merge(model, keep_copies=True)
        >>> shardload.unmerge(model)
        >>> torch.equal(model[0].weight, before)
        True

    Weights follow the model where it has been moved or cast since. Raises UsageError when nothing is merged,
    CorruptError when a shard that has to be read again has changed: the model stays merged then.
    """
    with LOCK, torch.no_grad():
        adapters = record_of(model)
        merged = adapters.merged
        if not isinstance(merged, Merge):
            raise UsageError(
                "no adapter is merged into this model",
                where="model",
                cure="there is nothing to undo: leave it out",
            )
        lost = [weight.name for weight in merged.changed if not weight.can_be_undone()]
        if lost:
            raise CorruptError(
                f"the shards of {len(lost)} weights have changed since, or are not known: their values are gone",
                where=listing(lost),
                cure="put the shards back, or load the model again",
            )
        for weight in merged.changed:
            weight.undo()
        adapters.merged = None
        adapters.switch.chosen = Choice(dict(merged.weights))


def _check_choice(adapters: Adapters, weights: Mapping[str, float]) -> None:
    if not weights:
        raise UsageError(
            "no adapter is active, so there is nothing to merge",
            where=f"attached: {listing(list(adapters.attached))}",
            cure="call set_adapter first",
        )
    if adapters.switch.live:
        raise UsageError(
            "a `with` block of disable_adapter or adapter_batch is open", cure="leave the block, then merge"
        )


Wanted = list[tuple[MergedWeight, Change]]


def _weights_to_change(model: nn.Module, adapters: Adapters, weights: Mapping[str, float]) -> Wanted:
    """Return every weight that the active adapters change, with the way in which it will be restored."""
    owners: dict[int, set[tuple[int, str]]] = {}
    paths: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), path)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add((id(module), name))
    found: dict[tuple[int, str], tuple[nn.Module, Change]] = {}
    reasons: list[str] = []
    for adapter, weight in weights.items():
        for module, term, factors in _changes_of(adapters, adapter):
            name = ".".join(part for part in (paths[id(module)], term.attribute) if part)
            reason = _why_not(module, term) or _wrapped(factors)
            if reason is not None:
                reasons.append(f"{name.rpartition('.')[0]} {reason}")
                continue
            change = found.setdefault((id(module), term.attribute), (module, Change(name)))[1]
            change.additions.append(Addition(term, factors, weight))
            change.adapters += 1
    if reasons:
        reasons = list(dict.fromkeys(reasons))
        raise UnsupportedError(
            f"{len(reasons)} layers can't be merged",
            where="; ".join(reasons[:8]),
            cure="leave the adapter attached: it runs unmerged",
        )
    judge = _Judge(model, owners)
    return [(judge(module, change), change) for module, change in _once(found, owners)]


class _Judge:
    """Decides how each weight will be restored; what the decision needs of the whole model is gathered once."""

    def __init__(self, model: nn.Module, owners: dict[int, set[tuple[int, str]]]) -> None:
        self.owners = owners
        self.origin = origin_of(model)
        self.mappings = PrivateMappings()
        # A tied weight is stored under one of its names.
        self.names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.names.setdefault(id(parameter), []).append(name)

    def __call__(self, module: nn.Module, change: Change) -> MergedWeight:
        attribute = change.additions[0].term.attribute
        parameter: Any = module._parameters[attribute]
        if is_packed(parameter):
            return PackedWeight.of(change.name, module, self.mappings)
        refs = {} if self.origin is None else self.origin.refs
        stored = next((name for name in self.names.get(id(parameter), ()) if name in refs), change.name)
        return MergedWeight.judge(
            change.name,
            module,
            attribute,
            shared=len(self.owners[id(parameter)]) > 1,
            origin=self.origin,
            stored_name=stored,
            mappings=self.mappings,
        )


def _changes_of(adapters: Adapters, adapter: str) -> Iterator[tuple[nn.Module, LoraTerm, Factors]]:
    """Yield the base tensors that an adapter changes; the bias of B changes the layer's bias."""
    for layer in adapters.attached[adapter].layers:
        for module, term, factors in layer.lora_changes(adapter):
            yield module, term, factors
            if factors.bias is not None:
                yield module, BiasTerm.of(term), factors


def _why_not(module: nn.Module, term: LoraTerm) -> str | None:
    kind = kind_of(module)
    weight = module._parameters.get(term.attribute)
    if is_packed(weight):
        return unpackable(module)
    if weight is not None and is_wrapper(weight):
        return f"has a {type(weight).__name__} as its {term.attribute}, which wraps other tensors"
    if isinstance(term, BiasTerm):
        return "has no bias, which lora_bias could be added to" if weight is None else None
    reason = kind.unmergeable(module, term) if kind is not None else None
    if reason is None and (weight is None or weight.dtype not in _FLOATING):
        reason = f"is a quantised {type(module).__name__}: its packed weight has no room for a delta"
    return reason


def _wrapped(factors: Factors) -> str | None:
    """Return why the adapter's own weights can't be added to the base's: DTensors are parts of what they stand for."""
    parts = (factors.a, factors.b, factors.bias, factors.magnitude)
    found = next((part for part in parts if part is not None and is_wrapper(part)), None)
    return (
        found if found is None else f"has a {type(found).__name__} in its adapter, which wraps other tensors"
    )


def _packed_anew(weights: list[MergedWeight]) -> list[str]:
    """Return a line on weights that are quantised anew."""
    kinds = [weight.kind for weight in weights if isinstance(weight, PackedWeight)]
    if not kinds:
        return []
    count = "1 weight was" if len(kinds) == 1 else f"{len(kinds)} weights were"
    return [
        f"{count} dequantised, and quantised to {', '.join(sorted(set(kinds)))} anew with the delta in them"
    ]


def _once(
    found: dict[tuple[int, str], tuple[nn.Module, Change]], owners: dict[int, set[tuple[int, str]]]
) -> Iterator[tuple[nn.Module, Change]]:
    """Yield each parameter to change once, also where several modules own it and all get the same rows."""
    seen: set[int] = set()
    for module, change in found.values():
        parameter = module._parameters[change.additions[0].term.attribute]
        places = owners[id(parameter)]
        shared = len(places) > 1 and all(not addition.term.rank for addition in change.additions)
        if shared and places <= found.keys():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                places.clear()  # together they are one
                yield module, change
        elif id(parameter) not in seen:
            yield module, change


def _allow_copies(nbytes: int, names: list[str], keep_copies: bool | None) -> None:
    if not nbytes or keep_copies:
        return
    text = f"an exact unmerge takes copies of {len(names)} weights, {size_of(nbytes)}: they differ from their shards, "
    text += "or never came from any"
    if keep_copies is None:
        warn_caller(f"{text} ({listing(names, 3)})")
        return
    raise UsageError(
        text,
        where=listing(names),
        cure=Cures(
            Wording("pass {keep_copies}", keep_copies=True),
            Wording("merge at load: from_pretrained with {merge}", merge=True),
        ),
    )


def _change_all(wanted: Wanted) -> list[MergedTensor]:
    """Apply every change; if one fails, the weights that were changed before it are restored."""
    rows, done = [], []
    try:
        with Workers() as workers:
            for weight, change in wanted:
                done.append(weight)
                base, result = weight.begin()
                survival, rounding = Survival(), Rounding("nearest", 0, change.name)
                for index, block in merged_blocks(base, change, base.dtype, rounding, survival, workers):
                    result[index] = block
                weight.put(result)
                if isinstance(weight, PackedWeight):
                    survival = weight.survived(result)
                rows.append(change.row(tuple(base.shape), weight.dtype, survival))
    except BaseException:
        for weight in reversed(done):
            weight.undo()
        raise
    return rows
