"""E-RENAME and E-OFFSET: the same tensors under other names, or numbered from another layer on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.keymap import KeyMap, Rename

if TYPE_CHECKING:
    from collections.abc import Sequence


class RenamedRule:
    """Reports the renames: families that were paired by shapes, numbers and words."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return a finding for the renames, and one for the renames that shift numbers."""
        solution = case.solution
        if solution.failed:
            return ()
        changed = [
            link
            for link in solution.links("rename", "transpose")
            if link.stored[0].template != link.wanted[0].template or link.offset
        ]
        moved = [link for link in changed if link.offset]
        plain = [link for link in changed if not link.offset]
        shifts = [rule for rule in solution.cure.renames.rules if isinstance(rule, Rename) and _shifts(rule)]
        others = [rule for rule in solution.cure.renames.rules if rule not in shifts]
        found = []
        if plain and others:
            rules = KeyMap(tuple(others))
            found.append(
                Finding.of_links(case, "E-RENAME", plain, "the same tensors have other names", rules)
            )
        if moved:
            cause = "the same tensors are numbered from another layer on"
            found.append(Finding.of_links(case, "E-OFFSET", moved, cause, KeyMap(tuple(shifts))))
        return found


def _shifts(rule: Rename) -> bool:
    return "{+" in rule.target or "{-" in rule.target
