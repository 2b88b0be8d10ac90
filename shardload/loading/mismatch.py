"""mismatch: makes the error that a load raises for its faults, with every known cause and cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import Cures, MismatchError, Wording
from shardload.loading.report import fault_text, headline

if TYPE_CHECKING:
    from collections.abc import Sequence

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
