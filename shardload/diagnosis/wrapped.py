"""E-WRAP: keys with whole segments too many or too few."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding, map_text
from shardload.keymap import KeyMap
from shardload.keys import split_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.diagnosis.pairing.wrapper import Wrapping


class WrappedRule:
    """Reports the segments that stored keys have too many or too few, and what usually adds them."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding for all changes of whole segments."""
        wrappings = case.solution.wrappings
        if not wrappings or case.solution.failed:
            return ()
        rules = KeyMap(tuple(rule for wrapping in wrappings for rule in wrapping.key_map.rules))
        moved = [key for key, name in case.solution.names.items() if name != key]
        example = next(iter(moved), "")
        return (
            Finding(
                "E-WRAP",
                "; ".join(_cause(wrapping) for wrapping in wrappings),
                explained=len(moved),
                nbytes=case.nbytes(moved),
                cure=map_text(rules),
                key_map=rules,
                evidence=(
                    f"{split_key(example)[0]} is {split_key(case.solution.names.get(example, ''))[0]}",
                ),
                confidence=1.0 if all(wrapping.gained for wrapping in wrappings) else 0.95,
            ),
        )


def _cause(wrapping: Wrapping) -> str:
    if wrapping.adds:
        return f'checkpoint keys lack "{wrapping.segments}.", which the model\'s names begin with'
    by = f" ({wrapping.by})" if wrapping.by else ""
    place = "" if wrapping.key_map.rules[0].to_dict().get("everywhere") else " in front of the model's names"
    return f'checkpoint keys carry "{wrapping.segments}."{place}{by}'
