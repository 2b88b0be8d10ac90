"""Whole sets of tensors below paths that fit equally well: `online.` and `target.` for the model's `net.`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.words import opposed, words_of
from shardload.diagnosis.pairing.wrapper import Wrapping, prefixes
from shardload.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shardload.diagnosis.pairing.key_family import KeyFamily

_LEAST = 2  # families of a set: one tensor is no set
Tree = dict[str, "KeyFamily"]


def rival_sets(stored: Sequence[KeyFamily], wanted: Sequence[KeyFamily]) -> list[Wrapping]:
    """Return the moves of whole sets to another path of which one is meant; none where a name says which.

    Several stored sets have all that the model lacks below one path, or one stored set is what it lacks below
    several. Only sets of half of what the model lacks count.
    """
    there = {family.template: family for family in wanted}
    strange = [family for family in stored if not _is_same(family, there.get(family.template))]
    own = {family.template for family in stored}
    lacking = [family for family in wanted if family.template not in own]
    least = sum(len(family.members) for family in lacking)
    olds, news = _trees(strange), _trees(lacking)
    whole = {
        (old, new): tree
        for new, tree in news.items()
        if len(tree) >= _LEAST
        for old in olds
        if not _is_opposed(old, new) and _has(olds[old], tree)
    }
    for side in (1, 0):  # of several stored sets one is meant; then: of several places
        for path in dict.fromkeys(move[side] for move in whole):
            moves = [move for move in whole if move[side] == path]
            if any(other[1 - side] == move[1 - side] for move in moves for other in whole.keys() - {move}):
                continue  # as many places as sets: which belongs where is another question
            moves = _most_alike(moves)
            keys = sum(len(family.members) for move in moves for family in whole[move].values())
            if len(moves) > 1 and (2 * keys >= least * (len(moves) if side else 1)):
                return [_wrapping(*move, whole[move], adds=not side) for move in moves]
    return []


def without_rivals(
    families: Sequence[KeyFamily], rivals: Iterable[Wrapping], *, adds: bool
) -> list[KeyFamily]:
    """Return the families of one side that stand in none of the rival sets of that side."""
    paths = tuple(f"{rival.segments}." for rival in rivals if rival.adds == adds)
    return [family for family in families if not family.template.startswith(paths)] if paths else [*families]


def _is_same(family: KeyFamily, other: KeyFamily | None) -> bool:
    return other is not None and other.members == family.members


def _trees(families: Sequence[KeyFamily]) -> dict[str, Tree]:
    """Return what stands below each path that many of the families share, by the rest of its names."""
    return {
        path: {
            family.template[len(path) + 1 :]: family
            for family in families
            if family.template.startswith(f"{path}.")
        }
        for path in prefixes(families)
    }


def _has(tree: Tree, wanted: Tree) -> bool:
    return tree.keys() >= wanted.keys() and all(
        tree[rest].members == family.members for rest, family in wanted.items()
    )


def _words(path: str) -> Counter[str]:
    return Counter(word for segment in path.split(".") for word in words_of(segment))


def _is_opposed(old: str, new: str) -> bool:
    return opposed(set(_words(old)), set(_words(new)))


def _most_alike(moves: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the moves whose two paths have the most words in common; of those, where some do, the fewest others."""

    def said(move: tuple[str, str]) -> tuple[int, int]:
        old, new = map(_words, move)
        shared = (old & new).total()
        return shared, -(old | new).total() if shared else 0

    best = max(map(said, moves), default=(0, 0))
    return [move for move in moves if said(move) == best]


def _wrapping(old: str, new: str, tree: Mapping[str, KeyFamily], *, adds: bool) -> Wrapping:
    return Wrapping(
        KeyMap().rename(f"{old}.{{...}}", f"{new}.{{...}}"),
        _mover(old, new),
        new if adds else old,
        adds=adds,
        gained=sum(len(family.members) for family in tree.values()),
    )


def _mover(old: str, new: str) -> Callable[[str], str]:
    return lambda key: f"{new}.{key[len(old) + 1 :]}" if key.startswith(f"{old}.") else key
