"""E-HEAD: an output layer that is not stored, though the config says that it is not the embedding's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.diagnosis.pairing.tied import heads_without_weights, tied_in
from shardload.errors import Cures, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Sequence


class HeadlessRule:
    """Applies where an embedding of the output layer's shape is stored, and the config says that they differ."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding for the output layers without weights."""
        against = tied_in(case.config, says=False)
        heads = [new.template for new, _ in heads_without_weights(case.solution.board)] if against else []
        if not heads:
            return ()
        return (
            Finding(
                "E-HEAD",
                f"{', '.join(heads)} is not stored, and by config.json it does not share the embedding's numbers",
                explained=len(heads),
                cure=Cures(
                    "fetch the shard that holds it",
                    Wording("start with new values: {allow_missing}", allow_missing=heads),
                    "use the class without an output layer",
                ),
                step=keyword("allow_missing", heads),
                settles=frozenset(heads),
                evidence=tuple(f"{place} = false" for place in against),
            ),
        )
