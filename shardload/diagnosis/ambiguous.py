"""E-AMBIGUOUS: tensors of one shape on both sides, and no name that says which is which."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.diagnosis.rule_text import rule_text
from shardload.errors import Cures, Wording
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from shardload.diagnosis.pairing.key_family import KeyFamily
    from shardload.diagnosis.pairing.wrapper import Wrapping

_MOST = 6  # groups that are shown


class AmbiguousRule:
    """Lists tensors that may be each other under another name; none of them is guessed."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding: for whole sets that fit equally well, or for unpaired families of equal shapes."""
        if case.solution.rivals:
            return (_of_sets(case, case.solution.rivals),)
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
        stored = case.solution.stored_names
        keys = stored(key for olds, _ in both for family in olds for key in family.names)
        return (
            Finding(
                "E-AMBIGUOUS",
                "equal shapes, and no name says which is which: this is not guessed",
                explained=len(keys),
                nbytes=case.nbytes(keys),
                cure=Wording("say which is which: {key_map}", key_map=...),
                evidence=tuple(_line(case, olds, news) for olds, news in both[:_MOST]),
                confidence=0.0,
                margin=0.0,
            ),
        )


def _of_sets(case: Case, rivals: Sequence[Wrapping]) -> Finding:
    adds = rivals[0].adds
    names = [f'"{rival.segments}."' for rival in rivals]
    what = (
        "the model has several whole sets of tensors" if adds else "several whole sets of weights are stored"
    )
    keys = [key for key in case.stored if adds or any(_has(key, rival.segments) for rival in rivals)]
    return Finding(
        "E-AMBIGUOUS",
        f"{what}, under {' and '.join(names)}, and nothing says which one is meant: this is not guessed",
        explained=len(keys),
        nbytes=case.nbytes(keys),
        cure=Cures(*(_taking(rival, rivals) for rival in rivals[:_MOST])),
        evidence=tuple(f"{rule_text(rival.key_map.rules[0])}: {rival.gained} keys fit" for rival in rivals),
        confidence=0.0,
        margin=0.0,
    )


def _has(key: str, segments: str) -> bool:
    return f".{segments}." in f".{key}"


def _taking(rival: Wrapping, rivals: Sequence[Wrapping]) -> str:
    """Return the cure that takes one of the sets and leaves the others out."""
    rule = rival.key_map.rules[0].to_dict()
    others = [f"{other.segments}.*" for other in rivals if other is not rival]
    names, taken = {rule["source"]: rule["target"]}, f'"{rival.segments}."'
    if rival.adds:
        return Wording(
            "to take {0}: {key_map} and {allow_missing}", taken, key_map=names, allow_missing=others
        )
    return Wording(
        "to take {0}: {key_map} and {allow_unexpected}", taken, key_map=names, allow_unexpected=others
    )


def _line(case: Case, olds: Sequence[KeyFamily], news: Sequence[KeyFamily]) -> str:
    names = case.solution.stored_names(key for family in olds for key in family.names)
    one = ", ".join(collapse(names))
    two = ", ".join(collapse(key for family in news for key in family.names))
    shape = olds[0].shape
    return f"{one} could be {two}" + (f"  {list(shape)}" if shape is not None else "")
