"""One error for all faults of an adapter, raised before anything changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from shardload.adapters.adapter_report import fault_lines, shown
from shardload.errors import CorruptError, MismatchError, ShardloadError, UnsupportedError, Wording

if TYPE_CHECKING:
    from shardload.adapters.adapter_report import AdapterReport

_CORRUPT = ("empty", "not finite")


def refuse(report: AdapterReport) -> NoReturn:
    """Raise one error for all faults of a report; the gravest fault decides its class."""
    kinds = {fault.kind for fault in report.faults}
    error: ShardloadError
    cure: str
    count = "one place" if len(report.faults) == 1 else f"{len(report.faults)} places"
    lines = "".join(f"\n    {line}" for line in fault_lines(report.faults))
    where = f"{shown(report.where)}{lines}"
    if kinds & set(_CORRUPT):
        cure = "save the adapter again, with the model gathered, or fetch the file again"
        error = CorruptError(f"the adapter's tensors can't be weights, in {count}", where=where, cure=cure)
    elif "unsupported" in kinds:
        cure = "merge it into its base with PEFT and load the result"
        error = UnsupportedError(
            f"the adapter needs what this version does not support, in {count}", where=where, cure=cure
        )
    elif kinds == {"unexpected"} and all("does not account for" in fault.text for fault in report.faults):
        cure = Wording(
            "pass {strict} to leave out what is no LoRA tensor, or save the adapter alone", strict=False
        )
        error = MismatchError(f"the file holds more than an adapter, in {count}", where=where, cure=cure)
        error.report = report
    else:
        base = f" ({shown(report.base)})" if report.base else ""
        cure = f"load it onto the base that it was trained on{base}, or fetch the file again"
        error = MismatchError(f"adapter and model disagree in {count}", where=where, cure=cure)
        error.report = report
    raise error
