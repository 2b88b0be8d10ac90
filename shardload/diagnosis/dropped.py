"""E-DROPPED: tensors that the model needs and the checkpoint holds, and that the caller's key map drops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.errors import Cures, Wording
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Sequence


class DroppedRule:
    """Applies where a missing key is stored under its own name."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding for all keys that the map drops."""
        if not case.dropped:
            return ()
        keys = collapse(case.dropped)
        shown = f"{', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}"
        return (
            Finding(
                "E-DROPPED",
                f"{shown}: stored, and dropped by the key map, though the model has a place for it",
                explained=len(case.dropped),
                cure=Cures(
                    Wording("leave the rule that drops it out of {key_map}", key_map=...),
                    Wording("start with new values: {allow_missing}", allow_missing=list(case.dropped)),
                ),
            ),
        )
