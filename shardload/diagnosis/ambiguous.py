"""E-AMBIGUOUS: tensors of one shape on both sides, and no name that says which is which."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.errors import Wording
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from shardload.diagnosis.pairing.key_family import KeyFamily

_MOST = 6  # groups that are shown


class AmbiguousRule:
    """Lists tensors that may be each other under another name; none of them is guessed."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding for all groups of unpaired families with equal numbers and shapes."""
        groups: dict[Hashable, tuple[list[KeyFamily], list[KeyFamily]]] = defaultdict(lambda: ([], []))
        board = case.solution.board
        namesakes = {family.template for family in board.stored} & {
            family.template for family in board.wanted
        }
        for side, families in enumerate((board.stored, board.wanted)):
            for family in families:
                if family.template not in namesakes:
                    groups[family.signature][side].append(family)
        both = [(olds, news) for olds, news in groups.values() if olds and news]
        if not both:
            return ()
        keys = [key for olds, _ in both for family in olds for key in family.names()]
        return (
            Finding(
                "E-AMBIGUOUS",
                "equal shapes, and no name says which is which: this is not guessed",
                explained=len(keys),
                nbytes=case.nbytes(keys),
                cure=Wording("say which is which: {key_map}", key_map={"stored name": "model name"}),
                evidence=tuple(_line(olds, news) for olds, news in both[:_MOST]),
                confidence=0.0,
                margin=0.0,
            ),
        )


def _line(olds: Sequence[KeyFamily], news: Sequence[KeyFamily]) -> str:
    one, two = (
        ", ".join(collapse(key for family in families for key in family.names())) for families in (olds, news)
    )
    shape = olds[0].shape
    return f"{one} could be {two}" + (f"  {list(shape)}" if shape is not None else "")
