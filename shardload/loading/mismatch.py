"""mismatch: the error that a load raises for its faults, with every cause and cure that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import MismatchError
from shardload.loading.report import fault_text, headline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.loading.fault import Fault
    from shardload.loading.report import Report


def mismatch(report: Report, faults: Sequence[Fault]) -> MismatchError:
    """Return the error for faults: headline, findings with their cures, and the faults grouped by template."""
    report.faults = tuple(faults)
    error = MismatchError(
        f"the checkpoint does not fit {report.class_name}: {headline(faults)}; nothing was loaded\n\n"
        + fault_text(faults, report.findings),
        where=report.where,
        cure=_cure(report, faults),
    )
    error.report = report
    return error


def _cure(report: Report, faults: Sequence[Fault]) -> str:
    if report.findings:
        first = report.findings[0]
        if report.key_map is None:
            return "; ".join(dict.fromkeys(finding.cure for finding in report.findings[:2]))
        if first.key_map and len(report.key_map.rules) == 1:
            return first.cure
        rules = (
            f"{len(report.key_map.rules)} rules, error.report.key_map: write them with `shardload doctor … "
            "--write-map map.json`, look at them, and load with `--map map.json`"
        )
        return rules if first.key_map else f"{first.cure}; and {rules}"
    kinds = {fault.kind for fault in faults}
    hints = [
        f"allow_{kind}=[…] for keys that may differ" for kind in ("missing", "unexpected") if kind in kinds
    ]
    return "; ".join(
        [*hints, "key_map= to rename keys", "or the class and config that belong to this checkpoint"]
    )
