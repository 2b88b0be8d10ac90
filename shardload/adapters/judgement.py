"""The verdict on an adapter: by the headers first, then by the values; all faults at once, before anything changes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shardload.adapters.adapter_report import AdapterFault, AdapterReport, fault_lines, shown
from shardload.adapters.fingerprint import METADATA_KEY, base_faults
from shardload.adapters.match import match_adapter
from shardload.adapters.values import read_values
from shardload.errors import CorruptError, MismatchError, ShardloadError, UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shardload.adapters.adapter import AdapterContent, AdapterFile
    from shardload.adapters.adapter_match import AdapterMatch
    from shardload.adapters.values import AdapterValues

_CORRUPT = ("empty", "not finite")


def judge(
    model: nn.Module, file: AdapterFile, content: AdapterContent, name: str, *, strict: bool
) -> tuple[AdapterReport, AdapterMatch]:
    """Match an adapter with a model, which may be on meta, and return the report so far and the plan.

    No weight is read. Raises MismatchError (with the report), UnsupportedError or CorruptError for all faults.
    """
    match = match_adapter(model, content, strict=strict)
    _compare_base(file, match, strict=strict)
    if not (match.layers or match.replaced or match.faults):
        match.faults.append(AdapterFault("missing", file.weights, "the file holds no LoRA weights"))
    loras = [found.reading.term for found in match.layers if found.reading.term.rank]
    report = AdapterReport(
        name=name,
        where=file.label,
        format=f"{content.format}, {file.checkpoint.format}",
        base=content.base,
        modules=len(loras),
        ranks=dict(Counter(term.rank for term in loras)),
        scales=dict(Counter(term.scale for term in loras)),
        warnings=(*file.checkpoint.warnings, *match.warnings),
        faults=tuple(match.faults),
        nbytes=file.checkpoint.nbytes,
    )
    refuse(report)
    return report, match


def _compare_base(file: AdapterFile, match: AdapterMatch, *, strict: bool) -> None:
    """Note it when the file remembers another base than the one at hand."""
    text = file.checkpoint.metadata.get(METADATA_KEY)
    if text is None:
        return
    base = {
        f"{found.entry.path}.{found.reading.term.attribute}": found.layer._parameters.get(
            found.reading.term.attribute
        )
        for found in match.layers
    }
    faults = list(base_faults(text, base))
    if strict:
        match.faults += faults
    else:
        match.warnings += [str(fault) for fault in faults]


def read_judged(
    file: AdapterFile,
    match: AdapterMatch,
    report: AdapterReport,
    *,
    dtype: str | torch.dtype = "file",
    as_stored: bool = False,
) -> AdapterValues:
    """Read all values of a matched adapter, note them in its report, and return them. Raises CorruptError."""
    values = read_values(file, match, report.name, dtype=dtype, as_stored=as_stored)
    report.rows, report.faults = tuple(values.rows), tuple(values.faults)
    refuse(report)
    report.warnings += tuple(values.warnings)
    return values


def refuse(report: AdapterReport) -> None:
    """Raise one error for all faults, of the kind of the gravest; return when there are none."""
    kinds = {fault.kind for fault in report.faults}
    if not kinds:
        return
    error: ShardloadError
    count = "one place" if len(report.faults) == 1 else f"{len(report.faults)} places"
    lines = "".join(f"\n    {line}" for line in fault_lines(report.faults))
    where = f"{shown(report.where)}{lines}"
    if kinds & set(_CORRUPT):
        cure = "save the adapter again, with the model gathered, or fetch the file again"
        error = CorruptError(f"the adapter's tensors can't be weights, in {count}", where=where, cure=cure)
    elif "unsupported" in kinds:
        cure = "merge it into its base with PEFT and load the result"
        error = UnsupportedError(
            f"the adapter asks for what this version does not do, in {count}", where=where, cure=cure
        )
    else:
        base = f" ({shown(report.base)})" if report.base else ""
        cure = f"load it onto the base that it was trained on{base}, or fetch the file again"
        error = MismatchError(f"adapter and model disagree in {count}", where=where, cure=cure)
        error.report = report
    raise error
