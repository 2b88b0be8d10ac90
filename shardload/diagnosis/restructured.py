"""E-SPLIT, E-CAT, E-STACK, E-UNSTACK, E-TRANSPOSE, E-TIE, W-BUF: the same values in other tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Sequence

_CAUSES = {
    "stack": ("E-STACK", "the checkpoint stores one by one what the model keeps in one tensor"),
    "unstack": ("E-UNSTACK", "the checkpoint stores in one tensor what the model keeps one by one"),
    "split": ("E-SPLIT", "the checkpoint stores in one matrix what the model keeps in several"),
    "cat": ("E-CAT", "the checkpoint stores in several matrices what the model keeps in one"),
    "transpose": ("E-TRANSPOSE", "matrices are stored transposed (Conv1D here, Linear there)"),
    "alias": ("E-TIE", "the checkpoint holds one copy of what the model has under two names"),
    "drop": ("W-BUF", "tables that the model computes itself are stored, and are left out"),
}


class RestructuredRule:
    """Reports one finding for each kind of change."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return the findings in the order in which the map applies them."""
        if case.solution.failed:
            return ()
        found = []
        for kind, (code, cause) in _CAUSES.items():
            links = case.solution.links(kind)
            if not links:
                continue
            finding = Finding.of_links(case, code, links, cause, case.solution.cure.of(kind))
            said = tuple(dict.fromkeys(link.evidence for link in links if link.evidence))
            keys = [key for link in links for family in link.stored for key in family.names]
            if kind in {"drop", "transpose"}:
                said += tuple(collapse(keys))
                finding = replace(finding, evidence=())
            found.append(replace(finding, evidence=(*said, *finding.evidence)))
        return found
