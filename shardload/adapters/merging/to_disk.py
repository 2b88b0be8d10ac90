"""merge_to_disk: base shards and adapters become merged shards, row blocks at a time; the model is never built."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from shardload._system.byte_size import parse_size
from shardload._system.file_identity import file_identity
from shardload._system.process_memory import PeakSampler
from shardload.adapters.adapter import ReadOptions
from shardload.adapters.merging.changes import Changes, changes_on_disk
from shardload.adapters.merging.merge_report import MergeReport
from shardload.adapters.merging.merged_output import MergedOutput
from shardload.adapters.merging.rounding import check_rounding
from shardload.adapters.merging.survival import MergedTensor, warnings_of
from shardload.adapters.merging.tied import has_to_be_untied
from shardload.adapters.merging.workers import Workers
from shardload.checkpoint.checkpoint import open_checkpoint
from shardload.checkpoint.plain_weights import dequantised, weights_in
from shardload.dtypes import parse_dtype
from shardload.errors import Cures, UnsupportedError, Wording
from shardload.keywords import entry_point, place_of
from shardload.transformers_classes.kept_on_disk import kept_on_disk
from shardload.writing import disk_room, write_output
from shardload.writing.repo_files import files_beside, with_dtype

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from shardload._system.progress import ProgressOption
    from shardload.adapters.adapter import AdapterFile
    from shardload.checkpoint.checkpoint import Checkpoint
    from shardload.keywords import WhereKeywords
    from shardload.where import WhereLike

_VOCABULARY_FIELDS = ("vocab_size", "padded_vocab_size")


@entry_point
def merge_to_disk(
    base: WhereLike,
    adapters: str | os.PathLike[str] | Sequence[Any],
    out: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "base",
    rounding: str = "nearest",
    seed: int = 0,
    max_shard_size: str | int | None = None,
    verify: bool = True,
    link: bool = True,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
    strict: bool = True,
    progress: ProgressOption = None,
    **keywords: Unpack[WhereKeywords],
) -> MergeReport:
    """Write `base` with adapters merged into it as a new checkpoint in `out`; nothing of the base's size is in memory.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> files = shardload.save(model, "base")
        >>> report = shardload.attach_lora(model, r=2, targets=["0"], init=False, seed=0)
        >>> files = shardload.save_adapter(model, "lora")
        >>> report = shardload.merge_to_disk("base", "lora", "merged")
        >>> list(shardload.diff("base", "merged", values=True).values)
        ['0.weight']

    `base` and each adapter: a folder, a file, or `org/name[@revision]` on the Hub (`revision`, `subfolder` and
    `variant` are the base's). `adapters` is one, or a list of them or of (adapter, weight) pairs; their deltas add
    up. The maths is in fp32 (fp64 where base or adapter are), rounded once to `dtype`: "base" keeps every stored
    dtype, another casts all floating tensors but for those that the base's class of transformers keeps in float32. A
    quantised base needs one: its packed weights are decoded block by block, and come out plain with the delta in them.
    `rounding="stochastic"` keeps small deltas on average, and is reproducible by `seed`. For one adapter and "nearest"
    the result is bit for bit what PEFT merges.

    Shards keep their names, and headers their bytes, unless `max_shard_size` (bytes, or "5GB") deals them anew.
    Tensors that no adapter changes are copied by the kernel, whole shards of them cloned or hard-linked
    (`link=False` copies them). Settings, tokenizer and code go along. `out` has to be new or empty; it is complete or
    has no weights: a run that was killed is completed by the same call. `verify` reads back what was written. `alpha`
    and `enable_lora` are as in `load_adapter`, for all adapters.

    Raises what `load_adapter` raises for the adapters, UnsupportedError for what can't be merged (packings that are not
    read, tied embeddings that are stored once, convolutions with groups), CorruptError for a result that is not finite
    or a file that changed meanwhile, UsageError, NoSpaceError.
    """
    start = time.perf_counter()
    options = ReadOptions.of(alpha, enable_lora, strict=strict)
    kind = check_rounding(rounding)
    wanted = None if dtype == "base" else parse_dtype(dtype)
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    listed = list(adapters) if isinstance(adapters, (list, tuple)) else [adapters]

    place = place_of(base, keywords)
    checkpoint = _plain(open_checkpoint(place), wanted)
    changes, reports, files = changes_on_disk(checkpoint, listed, options, place)
    refuse_packed(checkpoint, changes)
    untied = has_to_be_untied(checkpoint, changes)
    name = None if wanted is None else str(wanted).removeprefix("torch.")
    config = _changed(checkpoint.config, name, resized_rows(checkpoint, changes), untied=untied)
    beside = files_beside(checkpoint, config)
    workers = Workers()
    kept, note = _kept(checkpoint, wanted)
    merged = MergedOutput(
        checkpoint,
        changes,
        dtype=wanted,
        rounding=kind,
        seed=seed,
        limit=limit,
        beside=beside,
        workers=workers,
        kept=kept,
    )
    report = MergeReport(
        base=checkpoint.label,
        adapters=[each.where for each in reports],
        dtype=name or "dtypes of the base",
        rounding=kind,
        adapter_reports=reports,
        warnings=[*(warning for each in reports for warning in each.warnings), *note],
        room=disk_room(out, merged.output),
    )
    with PeakSampler() as sampler, workers:
        before = sampler.sample().anon
        written = report.written = write_output(
            out,
            merged.output,
            job=_job(files, listed, (kind, seed, options, sorted(kept))),
            verify=verify,
            link=link,
            keep=merged.rows_of,
            progress=progress,
        )
    report.peak_anon = sampler.peak.anon - before
    report.tensors = [MergedTensor.of_dict(row) for rows in written.kept.values() for row in _rows(rows)]
    report.warnings += warnings_of(report.tensors, cure=_cure(kind))
    if untied:
        report.warnings.append(
            "config.json now says tie_word_embeddings = false: one of two tied tensors changed"
        )
    report.seconds = time.perf_counter() - start
    return report


def _kept(checkpoint: Checkpoint, dtype: torch.dtype | None) -> tuple[frozenset[str], list[str]]:
    """Return the tensors that stay in float32 in a checkpoint of this dtype, and a line on them for the report."""
    if dtype not in (torch.float16, torch.bfloat16):
        return frozenset(), []
    from shardload.adapters.merging.class_on_disk import NO_CLASS, ClassOnDisk, names_a_class

    of_class = ClassOnDisk.of(checkpoint)  # it may import transformers
    if of_class is None:
        return frozenset(), [NO_CLASS] if names_a_class(checkpoint.config) else []
    kept = kept_on_disk(of_class.shell, checkpoint.tensors, dtype)
    name = type(of_class.shell.model).__name__
    line = f"{len(kept)} tensors are in float32: {name} keeps them so beside a half precision"
    return kept, [line] if kept else []


def _changed(
    config: dict[str, Any] | None, dtype: str | None, rows: tuple[int, int] | None, *, untied: bool
) -> dict[str, Any] | None:
    """Return a config that is true of the merged weights: its dtype, the size of the vocabulary, the tie."""
    if config is None:
        return None
    changed = dict(config) if dtype is None else with_dtype(config, dtype)
    for field in _VOCABULARY_FIELDS if rows else ():
        if rows and changed.get(field) == rows[0]:
            changed[field] = rows[1]
    if untied:
        changed["tie_word_embeddings"] = False
    return changed


def _plain(checkpoint: Checkpoint, dtype: torch.dtype | None) -> Checkpoint:
    """Return a base as if its packed weights were stored plain. Raises UnsupportedError for one that stays packed."""
    if not checkpoint.may_be_packed:
        return checkpoint
    if dtype is not None:
        checkpoint = dequantised(checkpoint, dtype)
    elif weights := weights_in(checkpoint):
        raise UnsupportedError(
            f"the base is quantised ({weights[0].scheme.label}): its packed weights have no room for a delta",
            where=checkpoint.label,
            cure=Cures(
                Wording(
                    "pass {dtype}, or float16 or float32: the delta is added to the dequantised weights, and the "
                    "result is plain",
                    dtype="bfloat16",
                ),
                "attach the adapter unmerged",
            ),
        )
    settings = (checkpoint.config or {}).get("quantization_config")
    if settings:
        method = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else "unnamed"
        raise UnsupportedError(
            f"the base is quantised ({method}): its packed weights have no room for a delta, and can't be made plain",
            where=f"{checkpoint.label}: config.json",
            cure=Cures("merge into the full-precision base", "attach the adapter unmerged"),
        )
    return checkpoint


def resized_rows(checkpoint: Checkpoint, changes: Changes) -> tuple[int, int] | None:
    """Return the rows of a vocabulary before and after, where an adapter resizes it; None where none does."""
    for name, change in changes.items():
        before = checkpoint.tensors[name].shape
        if change.replacement is not None and change.replacement.shape != before:
            return before[0], change.replacement.shape[0]
    return None


def refuse_packed(checkpoint: Checkpoint, changes: Changes) -> None:
    """Raise UnsupportedError for tensors to be changed that are no floating point of 16 bits or more."""
    packed = [name for name in changes if not checkpoint.tensors[name].is_floating]
    if packed:
        kinds = ", ".join(sorted({checkpoint.tensors[name].dtype for name in packed}))
        raise UnsupportedError(
            f"the adapter changes {len(packed)} tensors that are stored as {kinds}: they have no room for a delta",
            where=f"{checkpoint.label}: {', '.join(packed[:4])}",
            cure="merge into a base in float16, bfloat16 or float32",
        )


def _job(files: list[AdapterFile], adapters: list[Any], maths: tuple[object, ...]) -> str:
    """Return what decides the bytes besides the base: the adapters' files and weights, the maths, the library."""
    parts: list[object] = ["merge 1", torch.__version__, maths]
    for file, given in zip(files, adapters, strict=True):
        path = file.checkpoint.source.open(file.weights).local_path()
        weight = given[1] if isinstance(given, tuple) else 1.0
        parts += [file.label, file_identity(path), file.config, weight]
    return repr(parts)


def _rows(kept: object) -> list[dict[str, Any]]:
    return kept if isinstance(kept, list) else []


def _cure(rounding: str) -> str:
    finer = Wording('pass {dtype} (or "float16", which has finer steps than bfloat16)', dtype="float32")
    if rounding == "stochastic":
        return finer
    average = Wording("pass {rounding}, which keeps the delta on average", rounding="stochastic")
    return Cures(finer, average)
