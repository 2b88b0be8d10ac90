"""mismatch: makes the error that a load raises for its faults, with every known cause and cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import Cures, MismatchError, Wording, joined, keyword, keywords_of
from shardload.loading.report import fault_text, headline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.loading.fault import Fault
    from shardload.loading.report import Report


def mismatch(report: Report, faults: Sequence[Fault], first_cure: str | None = None) -> MismatchError:
    """Return the error for faults: a headline, findings with their cures, and the faults grouped by template.

    `first_cure` is a cure that comes before those of the findings.
    """
    report.faults = tuple(faults)
    error = MismatchError(
        Wording(
            "the checkpoint does not fit {0}: {1}; nothing was loaded\n\n{2}",
            report.class_name,
            headline(faults),
            fault_text(faults, report.findings),
        ),
        where=report.where,
        cure=_cure(report, faults) if first_cure is None else Cures(first_cure, _cure(report, faults)),
        code=next((finding.code for finding in report.findings if finding.code.startswith("E-")), None),
    )
    error.report = report
    return error


def _cure(report: Report, faults: Sequence[Fault]) -> str:
    if report.findings:
        first = report.findings[0]
        if report.key_map is None:
            return joined("; ", dict.fromkeys(finding.cure for finding in report.findings[:2]))
        if first.key_map and len(report.key_map.rules) == 1 and keywords_of(first.cure):
            return first.cure
        count = len(report.key_map.rules)
        rules = Wording(
            "{0}: write {1} with `shardload doctor … --write-map map.json`, look at {1}, and load with {key_map}",
            f"{count} rule{'s' * (count != 1)}",
            "it" if count == 1 else "them",
            key_map="map.json",
        )
        return rules if first.key_map else Wording("{0}; and {1}", first.cure, rules)
    kinds = {fault.kind for fault in faults}
    hints = [
        Wording("pass {0} for keys that may differ", keyword(f"allow_{kind}"))
        for kind in ("missing", "unexpected")
        if kind in kinds
    ]
    rename = Wording("rename keys by {key_map}", key_map=...)
    return Cures(*hints, rename, "use the class and config that belong to this checkpoint")
