"""mismatch: makes the errors that a load raises for its faults, with every known cause and cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import Cures, MismatchError, UnsupportedError, Wording
from shardload.loading.report import fault_text, headline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.diagnosis.finding import Finding
    from shardload.loading.fault import Fault
    from shardload.loading.report import Report


_UNEXPLAINED = Cures(
    Wording("rename keys by {key_map}", key_map=...),
    "use the class and config that belong to this checkpoint",
)


def mismatch(report: Report, faults: Sequence[Fault], first_cure: str | None = None) -> MismatchError:
    """Return the error for faults: a headline, findings with their cures, and the faults grouped by template.

    `first_cure` is a cure that comes before that of the report.
    """
    report.faults = tuple(faults)
    cures = [cure for cure in (first_cure, report.cure) if cure is not None] or [_UNEXPLAINED]
    error = MismatchError(
        Wording(
            "the checkpoint does not fit {0}: {1}; nothing was loaded\n\n{2}",
            report.class_name,
            headline(faults),
            fault_text(faults, report.findings),
        ),
        where=report.where,
        cure=Cures(*cures) if len(cures) > 1 else cures[0],
        code=next((finding.code for finding in report.findings if finding.code.startswith("E-")), None),
    )
    error.report = report
    return error


def declined(report: Report, finding: Finding) -> UnsupportedError:
    """Return the error for a checkpoint that is not loaded at all."""
    cure = finding.cure
    if isinstance(cure, Cures) and "allow_unexpected" in report.allowed:
        cure = Cures(*(_beside_patterns(part) for part in cure.parts))
    return UnsupportedError(finding.cause, where=report.where, cure=cure, code=finding.code)


def _beside_patterns(cure: str) -> str:
    """Return a cure for a load that is told what to leave out: what `convert` writes has no parts to name."""
    if "shardload convert" not in cure:
        return cure
    return Wording("{0}, and load that one without the patterns that name parts of packed weights", cure)
