"""E-HEAD and E-TIE: an output layer that is not stored, and that nothing says to share the embedding's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding, map_text
from shardload.diagnosis.pairing.tied import heads_without_weights, tied_in
from shardload.diagnosis.rule_text import rule_text
from shardload.errors import Cures, Wording, keyword
from shardload.keymap import Alias, KeyMap

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARED, NEW = "if it shares the embedding's numbers", "if it is to start with new values"


class HeadlessRule:
    """Applies where an embedding of the output layer's shape is stored.

    Where the config says that they differ, the layer is to be found elsewhere; where it says nothing, or both at
    several depths, it may share the numbers or be new: both are shown.
    """

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding for the output layers without weights."""
        # What the config ties has its weights by now.
        found = heads_without_weights(case.solution.board)
        ties = [(place.template, new.template) for new, _, place in found]
        places, against = tied_in(case.config), tied_in(case.config, says=False)
        if against and not places:
            return _untied([new for _, new in ties], against)
        # A head that lacks its bias too is not stored at all.
        return _either(
            [(old, new) for old, new in ties if f"{new.rpartition('.')[0]}.bias" not in case.missing],
            [*(f"{place} = true" for place in places), *(f"{place} = false" for place in against)],
        )


def _untied(heads: list[str], against: Sequence[str]) -> Sequence[Finding]:
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


def _either(ties: Sequence[tuple[str, str]], said: Sequence[str]) -> Sequence[Finding]:
    if not ties:
        return ()
    heads = [new for _, new in ties]
    rules = KeyMap(tuple(Alias(old, new) for old, new in ties))
    new = keyword("allow_missing", heads)
    says = f"config.json says both ({', '.join(said)})" if said else "config.json does not say"
    return (
        Finding(
            "E-TIE",
            f"{', '.join(heads)} is not stored: it shares the embedding's numbers, or it is new, and {says}",
            explained=len(heads),
            cure=Cures(Wording("{0}: {1}", SHARED, map_text(rules)), Wording("{0}: {1}", NEW, new)),
            evidence=tuple(rule_text(rule) for rule in rules.rules),
            confidence=0.5,
            margin=0.0,
            settles=frozenset(heads),
            choices=((SHARED, rules), (NEW, new)),
        ),
    )
