"""E-AMBIGUOUS: tensors of one shape on both sides, and no name that says which is which."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.finding import Case, Finding
from shardload.diagnosis.pairing.solution import Left
from shardload.diagnosis.rule_text import as_names, rule_text
from shardload.diagnosis.whole_cure import NO_CURE, allowed
from shardload.errors import Cures, Wording, joined, keyword
from shardload.keys import collapse, no_weight, split_key

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from shardload.diagnosis.pairing.key_family import KeyFamily
    from shardload.diagnosis.pairing.wrapper import Wrapping

_MOST = 6  # groups that are shown
_MOST_NAMES = 12  # of one side of a group


class AmbiguousRule:
    """Lists tensors that may be each other under another name; none of them is guessed."""

    def examine(self, case: Case) -> Sequence[Finding]:
        """Return one finding: for whole sets that fit equally well, or for unpaired families of equal shapes."""
        if case.solution.rivals:
            return (_of_sets(case, case.solution.rivals),)
        groups: dict[Hashable, tuple[list[KeyFamily], list[KeyFamily]]] = defaultdict(lambda: ([], []))
        board = case.solution.board
        # Names that both sides have say which is which, whatever their sizes; so do those of other numbers.
        names = [{_name(family) for family in families} for families in (board.stored, board.wanted)]
        namesakes = names[0] & names[1]
        for side, families in enumerate((board.stored, board.wanted)):
            for family in families:
                # What is computed of a weight is not one that is called otherwise: E-DERIVED says so.
                if _name(family) not in namesakes:
                    groups[family.signature, no_weight(family.template)][side].append(family)
        both = [(olds, news) for olds, news in groups.values() if olds and news]
        many = [family for family in board.passed_over if _name(family) not in namesakes]
        if not both and not many:
            return ()
        unclear = {id(family): family for family in (*many, *(old for olds, _ in both for old in olds))}
        keys = case.solution.stored_names(key for family in unclear.values() for key in family.names)
        cause = "equal shapes, and no name says which is which: this is not guessed"
        cure: str = Wording("say which is which: {key_map}", key_map=...)
        if many:
            cause = f"{len(many)} names that may be others, more than are all compared: this is not guessed"
            cure = Cures(NO_CURE, cure)
        return (
            Finding(
                "E-AMBIGUOUS",
                cause,
                explained=len(keys),
                nbytes=case.nbytes(keys),
                cure=cure,
                evidence=tuple(_line(case, olds, news) for olds, news in both[:_MOST]),
                confidence=0.0,
                margin=0.0,
            ),
        )


def _name(family: KeyFamily) -> str:
    """Return the template of a family's keys in full: pairing may have made numbers in it literal."""
    return split_key(family.names[0])[0]


def _of_sets(case: Case, rivals: Sequence[Wrapping]) -> Finding:
    adds = rivals[0].adds
    names = [f'"{rival.segments}."' for rival in rivals]
    what = (
        "the model has several whole sets of tensors" if adds else "several whole sets of weights are stored"
    )
    cures = [cure for rival in rivals[:_MOST] if (cure := _taking(case, rival, rivals))]
    keys = [key for key in case.stored if adds or any(_has(key, rival.segments) for rival in rivals)]
    return Finding(
        "E-AMBIGUOUS",
        f"{what}, under {' and '.join(names)}, and nothing says which one is meant: this is not guessed",
        explained=len(keys),
        nbytes=case.nbytes(keys),
        cure=Cures(*cures) if cures else NO_CURE,
        evidence=tuple(f"{rule_text(rival.key_map.rules[0])}: {rival.gained} keys fit" for rival in rivals),
        confidence=0.0,
        margin=0.0,
    )


def _has(key: str, segments: str) -> bool:
    return f".{segments}." in f".{key}"


def _taking(case: Case, rival: Wrapping, rivals: Sequence[Wrapping]) -> str | None:
    """Return the cure that takes one of the sets, and leaves out the others and what has no place besides.

    None where what is left besides may belong together.
    """
    others = [other.segments for other in rivals if other is not rival]
    sets = [f"{segments}.*" for segments in others]
    table = rival.key_map.made(case.stored)
    lacking = {key: shape for key, shape in case.slots.items() if key in case.missing and key not in table}
    strange = {key: ref.shape for key, ref in table.items() if key not in case.slots}
    of_others = lacking if rival.adds else strange
    for key in [key for key in of_others if any(_has(key, each) for each in others)]:
        del of_others[key]
    found = allowed(case, Left(lacking, strange, ()))
    if found is None:
        return None
    name = "allow_missing" if rival.adds else "allow_unexpected"
    found[name] = [*sets, *found.get(name, ())]
    names = as_names((*case.own_rules, *rival.key_map.rules))
    steps = [keyword("key_map", ... if names is None else names)]
    steps += [keyword(step, found[step]) for step in sorted(found)]
    return Wording("to take {0}: {1}", f'"{rival.segments}."', joined(" and ", steps))


def _line(case: Case, olds: Sequence[KeyFamily], news: Sequence[KeyFamily]) -> str:
    names = case.solution.stored_names(key for family in olds for key in family.names)
    one = _shown(collapse(names))
    two = _shown(collapse(key for family in news for key in family.names))
    shape = olds[0].shape
    return f"{one} could be {two}" + (f"  {list(shape)}" if shape is not None else "")


def _shown(patterns: Sequence[str]) -> str:
    more = f" and {len(patterns) - _MOST_NAMES} more" if len(patterns) > _MOST_NAMES else ""
    return ", ".join(patterns[:_MOST_NAMES]) + more
