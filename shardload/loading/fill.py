"""fill loads a checkpoint into a model; check compares the two without reading a weight."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from shardload._system.process_memory import PeakSampler
from shardload._system.ranks import has_ranks, together, told_early
from shardload.checkpoint.checkpoint import Checkpoint
from shardload.checkpoint.shard import DTYPES
from shardload.dtypes import parse_dtype
from shardload.errors import UsageError, Wording
from shardload.keymap import KeyMap
from shardload.keywords import entry_point, entry_point_within
from shardload.loading.finish import finish
from shardload.loading.judge import Comparison
from shardload.loading.memory_plan import refuse_above
from shardload.loading.provenance import CONVERSIONS, remember_origin
from shardload.loading.report import MemoryUse, Report
from shardload.loading.stream import stream
from shardload.loading.ties import compare_stored_copies
from shardload.model.aliases import References
from shardload.model.meta_init import unseen
from shardload.model.module_loaders import Snapshot
from shardload.model.shell import Shell
from shardload.placement.device import OnDevice
from shardload.placement.target import Target

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    from shardload._system.agreement import Agreement
    from shardload._system.progress import ProgressOption
    from shardload._system.ranks import OneProcess
    from shardload.compare.verify import VerifiedWhileLoading
    from shardload.keymap import Names
    from shardload.loading.class_values import ClassValues
    from shardload.loading.leniency import Patterns
    from shardload.loading.memory_plan import MemoryPlan
    from shardload.loading.read_once import ReadOnce
    from shardload.model.module_tree import ModuleTree


_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
_MAPPED_AND_MIRRORED = (
    "DistributedDataParallel's first broadcast writes to every page of mapped weights, which then takes memory on each "
    "rank: shardload.data_parallel(model) wraps the model and keeps them mapped"
)


@entry_point
def check(
    shell: Shell | nn.Module,
    checkpoint: Checkpoint,
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    target: Target | None = None,
) -> Report:
    """Compare a model with a checkpoint without reading a weight; the report's `faults` say what does not fit.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> checkpoint = shardload.open_checkpoint("tiny")
        >>> shardload.check(torch.nn.Linear(4, 2), checkpoint).ok
        True
        >>> [fault.key for fault in shardload.check(torch.nn.Linear(5, 2), checkpoint).faults]
        ['weight']

    Modules with load hooks are rehearsed on meta tensors, so their hooks run; the model is not changed. `target` is
    that of the load, where it takes more than plain weights: `Quantised` takes those that bitsandbytes packed.
    """
    shell = _as_shell(shell)
    target = _target(target or Target(), None, shell)
    with _prepared(shell, target, kept=False):
        comparison = Comparison(shell, _as_checkpoint(checkpoint), _rules(key_map), target)
        comparison.judge()
    return comparison.report


@entry_point_within(partial(told_early, lambda given: _ranks_of(_as_shell(given["shell_or_module"]))))
def fill(
    shell_or_module: Shell | nn.Module,
    checkpoint: Checkpoint,
    *,
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
    target: Target | None = None,
    strict: bool = True,
    allow_missing: Patterns = (),
    allow_unexpected: Patterns = (),
    progress: ProgressOption = None,
    copy: bool = False,
    verify: bool = False,
    spill: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    read: Literal["slice", "once"] = "slice",
    timeout: float = 3600.0,
    dtype: str | torch.dtype = "stored",
) -> Report:
    """Load a checkpoint into a shell or into an existing module, shard by shard, by assigning.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> shell = shardload.build_shell(lambda: torch.nn.Linear(4, 2))
        >>> report = shardload.fill(shell, shardload.open_checkpoint("tiny"))
        >>> report.loaded, report.nbytes, shell.model.weight.is_meta
        (2, 40, False)

    The headers are compared with the model before the model is touched; after any later failure every parameter is
    restored. On the CPU, a weight that keeps its stored dtype is a view of its mapped file (`copy=True` reads it into
    memory instead). `verify=True` hashes the weight files during the load and refuses bytes whose digest differs from
    the Hub's listing, the Hub's cache or a SHA256SUMS file. `allow_missing` and `allow_unexpected` are patterns of
    whole keys, by fnmatch or as a key map writes them; parameters that are allowed to be missing get the values that
    the class gives them. "head" stands for what lies outside the class's `base_model_prefix`, and for a pooler: never
    for a layer of the base.

    `key_map` is a KeyMap, a mapping of names, or the path of a map's JSON file: parts and transposes of stored tensors
    stay views, joined tensors are copies. The parameters of an existing module are replaced: make optimizers
    afterwards. `max_memory` is the most that the load may add to this process's anonymous memory beside the shell, in
    bytes: a load that states more is refused before a weight is read. The shell, with the buffers that its class
    computes, was built before and is not counted. `spill` is a folder for a file that holds the results of casts: the
    system can write the pages of that file out and drop them (see OnDevice). `dtype` casts floating weights; those that
    a quantiser packed are dequantised to it while they are read, unless the model has modules that take them packed.

    A model that torch sharded over ranks (`fully_shard`, `parallelize_module`) stays sharded: each rank calls `fill`,
    reads its own part, and the figures of the report are its own. With `read="once"` the first of the ranks that hold
    the same part reads it and sends it to the others, into memory; in one process that changes nothing. All ranks
    succeed, or all raise the error of the one that failed. `timeout` is how many seconds a rank waits for the others.
    Raises MismatchError, MemoryLimitError, NoSpaceError, UnsupportedError, CorruptError, UsageError, RanksError.
    """
    shell = _as_shell(shell_or_module)
    with unseen(), together(partial(_ranks_of, shell), timeout) as ranks, ExitStack() as prepared:
        with ranks.judging():
            checkpoint, rules = _as_checkpoint(checkpoint), _rules(key_map)
            target = _target(target, spill, shell, dtype)
            if read not in ("slice", "once"):
                raise UsageError(
                    Wording("{read} is no way to read", read=read), cure='pass "slice" or "once"'
                )
            prepared.enter_context(_prepared(shell, target))
        if ranks:
            _require_same(ranks, shell, checkpoint, rules, target, read)
        copy = (
            copy or checkpoint.source.is_streamed or bool(ranks and read == "once")
        )  # what is received lies in memory
        with ranks.judging():
            target.dtypes, target.reads_files = shell.dtypes(_loaded_in(target, checkpoint)), copy
            comparison = Comparison(shell, checkpoint, rules, target)
            checkpoint = comparison.checkpoint  # with plain weights where it is quantised
            verdict = comparison.judge(
                strict=strict, allow_missing=allow_missing, allow_unexpected=allow_unexpected
            )
            comparison.refuse_if_faulty(verdict)
            comparison.refuse_oversized(verdict)
            report = comparison.report
            missing = comparison.unfilled(verdict)
            report.stated = comparison.memory(missing, copy=copy)
            refuse_above(report.stated, max_memory, partial(_cures, comparison, target, missing, copy=copy))
            if report.stated.spilled and target.spill:
                target.spill.require(report.stated.spilled)
        if report.stated.mapped and not ranks and has_ranks():
            report.notes.append(_MAPPED_AND_MIRRORED)
        verified = _verified(checkpoint) if verify else None
        with PeakSampler() as sampler, _all_or_nothing(comparison.tree) as undo:
            before = sampler.sample()
            if shell.ties:
                report.notes += compare_stored_copies(
                    shell, comparison.plan, checkpoint, undo, rules.rules if rules else (), copy=copy
                )
            drawn = missing or comparison.plan.in_place  # a loader may fill a part of what the class draws
            with ranks.same_random() if drawn else nullcontext():
                values = _class_values(shell, missing, comparison.plan.in_place)
            references = References(shell.model) if shell.keeps_references else None
            with _reading(target, ranks, comparison, read) as once:
                with verified or nullcontext():
                    options: Any = {"progress": progress, "verified": verified, "once": once}
                    filled = stream(comparison, target, values, copy=copy, **options)
                ranks.meet("filled")
            report.notes += finish(shell, filled, missing, values, target, references, undo)
            report.notes, report.devices = [*report.notes, *target.notes], list(target.devices)
            if getattr(target, "dtype", None) is None:
                report.notes += _dtype_notes(comparison, target.dtypes)
        remember_origin(shell.model, checkpoint, comparison.plan)
        if comparison.conversions:
            CONVERSIONS.remember(shell.model, comparison.conversions)
        report.memory = MemoryUse(before, sampler.sample(), sampler.peak)
    return report


def _cures(comparison: Comparison, target: Target, missing: Sequence[str], limit: int, *, copy: bool) -> str:
    from shardload.loading.memory_cures import MemoryCures  # for a load that is refused

    own_rules = bool(comparison.conversions)
    planned = (comparison.plan, comparison.shell, comparison.checkpoint)
    return MemoryCures(*planned, missing, target, copy=copy, own_rules=own_rules).below(limit)


def stated_for(
    shell: Shell | nn.Module, checkpoint: Checkpoint, rules: KeyMap | None, target: Target, *, copy: bool
) -> MemoryPlan:
    """Return the memory that `fill` would state, whatever does not fit being left out."""
    shell = _as_shell(shell)
    target = _target(target, None, shell)
    target.prepare(shell.model)
    target.dtypes, target.reads_files = shell.dtypes(_loaded_in(target, checkpoint)), copy
    comparison = Comparison(shell, checkpoint, rules, target)
    verdict = comparison.judge()
    verdict.allowed["not judged"] = verdict.faults
    return comparison.memory(comparison.unfilled(verdict), copy=copy)


def _dtype_notes(comparison: Comparison, kept: Collection[str]) -> list[str]:
    """Return notes on weights of several dtypes, for a load that keeps each one's own."""
    several, joined = len(_FLOATS.intersection(comparison.report.dtypes)) > 1, comparison.plan.held.joined
    if not several and not joined:
        return []
    from shardload.loading.mixed_dtypes import joined_notes, mixed_notes

    notes = joined_notes(comparison.plan.tensors) if joined else []
    return [*notes, *(mixed_notes(comparison.shell.model, kept) if several else [])]


def _loaded_in(target: Target, checkpoint: Checkpoint) -> torch.dtype | None:
    """Return the dtype that the floating weights come out in: the target's, else the one of most stored bytes."""
    return getattr(target, "dtype", None) or DTYPES.get(checkpoint.float_code)


@contextmanager
def _prepared(shell: Shell, target: Target, *, kept: bool = True) -> Iterator[None]:
    """Let the target change modules, and survey the model anew.

    The modules are restored after any error in the block, and after the block where they are not to be `kept`.
    """
    if type(target).prepare is Target.prepare:
        yield
        return
    snapshot = Snapshot(list(shell.model.modules()))
    try:
        target.prepare(shell.model)
        shell.surveyed()
        yield
    except BaseException:
        kept = False
        raise
    finally:
        if not kept:
            snapshot.restore()
            shell.surveyed()


def _verified(checkpoint: Checkpoint) -> VerifiedWhileLoading:
    from shardload.compare.verify import VerifiedWhileLoading

    return VerifiedWhileLoading(checkpoint)


def _class_values(shell: Shell, missing: Sequence[str], in_place: Collection[str]) -> ClassValues | None:
    """Return the class's values of parameters that no stored tensor fills, or that a loader may fill in part."""
    if not missing and not in_place:
        return None
    from shardload.loading.class_values import ClassValues

    return ClassValues(shell, {*missing, *in_place})


def _rules(key_map: KeyMap | Names | str | os.PathLike[str] | None) -> KeyMap | None:
    """Return the key map that `key_map` describes; None for one without rules that is not bound to a checkpoint."""
    if key_map is None:
        return None
    rules = KeyMap.of(key_map)
    return rules if rules.rules or rules.source is not None else None


def _ranks_of(shell: Shell) -> tuple[int, ...]:
    """Return the ranks over which the model is sharded."""
    from shardload.loading.over_ranks import ranks_of

    return ranks_of(shell)


def _require_same(ranks: Agreement, *made: Any) -> None:
    from shardload.loading.over_ranks import require_same

    require_same(ranks, *made)


def _reading(
    target: Target, ranks: Agreement | OneProcess, comparison: Comparison, read: str
) -> AbstractContextManager[ReadOnce | None]:
    """Return what lets ranks that hold the same part share one read of it; nothing for a model of one process."""
    if not ranks:
        return nullcontext()
    from shardload.loading.over_ranks import reading

    return reading(target, ranks, comparison, read)


def _target(
    target: Target | None,
    spill: str | os.PathLike[str] | None,
    shell: Shell,
    dtype: str | torch.dtype = "stored",
) -> Target:
    code = None if dtype == "stored" else parse_dtype(dtype)
    if target is not None and code is not None:
        raise UsageError(
            Wording("{dtype} applies to the default target only, and a target was given", dtype=dtype),
            cure=Wording("pass it to the target: OnDevice({dtype})", dtype=...),
        )
    if target is not None and spill is not None:
        raise UsageError(
            Wording("{spill} applies to the default target only, and a target was given", spill=...),
            cure=Wording("pass the folder to the target: OnDevice({dtype}, {spill})", dtype=..., spill=...),
        )
    if target is not None and not isinstance(target, Target):
        raise UsageError(
            f"a target is wanted, not {type(target).__name__}",
            cure="pass OnDevice(…), or a subclass of shardload.placement.target.Target",
        )
    if code is not None:
        target = OnDevice(dtype=code, spill=spill)
    if has_ranks():
        from shardload.placement.sharded import sharded

        target = sharded(shell, target, spill)
    return target or OnDevice(spill=spill)


def _as_shell(shell_or_module: Shell | nn.Module) -> Shell:
    if has_ranks() and isinstance(shell_or_module, Shell | nn.Module):
        from shardload.placement.sharded import into_parts

        into_parts(shell_or_module.model if isinstance(shell_or_module, Shell) else shell_or_module)
    if isinstance(shell_or_module, Shell):
        return shell_or_module.surveyed()
    if isinstance(shell_or_module, nn.Module):
        return Shell.of(shell_or_module)
    raise UsageError(f"a shell or an nn.Module is wanted, not {type(shell_or_module).__name__}")


def _as_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    if not isinstance(checkpoint, Checkpoint):
        raise UsageError(
            f"a Checkpoint is wanted, not {type(checkpoint).__name__}",
            cure="open it first: open_checkpoint(where); a state dict in memory is loaded by load_state_dict",
        )
    return checkpoint


@contextmanager
def _all_or_nothing(tree: ModuleTree) -> Iterator[list[Callable[[], None]]]:
    """Restore every parameter, buffer and attribute, by identity, when the block raises.

    The old tensors are kept, not copied, so the old weights of a real module live until the load is done. Yields a list
    for functions that revert other changes; after an error they run in reverse order.
    """
    modules = tree.plain.values()
    kept = [(module, dict(module._parameters), dict(module._buffers)) for module in modules]
    # A module that overrides __setattr__ may keep more than its tables: an RNN keeps a list of its weights.
    own = [module for module in modules if type(module).__setattr__ is not nn.Module.__setattr__]
    snapshots = [Snapshot(own)] if own else []
    snapshots += [Snapshot(root.module.modules()) for root in tree.self_loading]
    undo: list[Callable[[], None]] = [partial(torch._C._set_grad_enabled, torch.is_grad_enabled())]
    try:
        yield undo
    except BaseException:
        for step in reversed(undo):
            step()
        for module, parameters, buffers in kept:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for snapshot in snapshots:
            snapshot.restore()
        raise
