"""Findings as lines for people: cause, evidence and cure of each, never more than a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.errors import Wording, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.diagnosis.finding import Finding

_MOST_EVIDENCE = 6  # lines a finding, while there is room
_MOST_FINDINGS = 7
_WIDEST = 220  # characters of a line of evidence


def finding_lines(
    findings: Sequence[Finding], *, total: int = 0, nbytes: int = 0, most: int = 36
) -> list[str]:
    """Return at most `most` lines for findings, the worst first; findings that are left out are counted.

    `total` and `nbytes` are the keys and bytes of the checkpoint, of which a finding explains a share.
    """
    for evidence in range(_MOST_EVIDENCE, -1, -1):
        blocks = [_block(finding, evidence, total, nbytes) for finding in findings[:_MOST_FINDINGS]]
        lines = [line for block in blocks for line in block]
        if len(lines) <= most - 1 or not evidence:
            break
    hidden = findings[_MOST_FINDINGS:]
    if hidden:
        codes = ", ".join(dict.fromkeys(finding.code for finding in hidden))
        lines.append(f"… and {len(hidden)} more findings ({codes}); --json has them all")
    return lines


def _block(finding: Finding, evidence: int, total: int, nbytes: int) -> list[str]:
    share = f"/{total:,}" if total else ""
    percent = f" ({100 * finding.nbytes / nbytes:.0f}% of bytes)" if nbytes and finding.nbytes else ""
    sure = f", confidence {finding.confidence:.2f}" if finding.confidence else ""
    plural = "s" if finding.explained != 1 or total else ""
    lines = [
        f"{finding.code:<7} {finding.explained:,}{share} key{plural} explained{percent}{sure}",
        f"  {finding.cause}",
    ]
    shown = finding.evidence[:evidence]
    lines += [f"    {_cut(line)}" for line in shown]
    left = len(finding.evidence) - len(shown)
    if left and evidence:
        lines[-1] += f"  … and {left} more"
    if finding.unproven:
        lines.append(f"  layout_unproven: {'; '.join(finding.unproven)}")
    lines.append(Wording("  cure: {0}", finding.cure))
    return [printable(line) for line in lines]


def _cut(line: str) -> str:
    return line if len(line) <= _WIDEST else line[: _WIDEST - 2] + " …"
