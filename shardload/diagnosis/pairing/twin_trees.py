"""Whole subtrees that are built alike, such as the towers of images and of videos: told apart by what holds them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple

from shardload.diagnosis.pairing.board import Link
from shardload.diagnosis.pairing.words import opposed, words_of
from shardload.keys import no_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily

_LEAST = 8  # families of a tree: fewer are one module, and a block has several of those
_MOST_OF = 0.75  # of what is open below both paths; the rest may have other names
_DEEPEST = 16  # segments of a path
_MOST_ALIKE = 32  # families of one end and one signature; more are no towers
Pairs = list[tuple["KeyFamily", "KeyFamily"]]


class _Tree(NamedTuple):
    """A path of each side below which most open families have the same ends, numbers and shapes."""

    old: str
    new: str
    pairs: Pairs

    @property
    def shared(self) -> int:
        """How many whole segments the two paths have in common."""
        return len(set(self.old.split(".")) & set(self.new.split(".")))


def pair_twin_trees(board: Board) -> None:
    """Link whole subtrees that fit several others, where their paths share a segment that no other pair shares.

    Words alone would weigh `video_tower.vision_model` against two towers of the model's; a whole tree has one place.
    """
    trees = [tree for tree in _trees(board) if not _is_opposed(tree)]
    fitting: dict[tuple[int, str], list[_Tree]] = defaultdict(list)
    for tree in trees:
        fitting[0, tree.old].append(tree)
        fitting[1, tree.new].append(tree)
    links = []
    for tree in trees:
        rivals = [other for other in (*fitting[0, tree.old], *fitting[1, tree.new]) if other is not tree]
        if rivals and all(tree.shared > rival.shared for rival in rivals):
            links += [Link("rename", (old,), (new,), confidence=0.96) for old, new in tree.pairs]
    used = {id(family) for link in links for family in (*link.stored, *link.wanted)}
    if len(used) == 2 * len(links):  # a tree inside another would give a family two partners
        board.add(*links)


def _trees(board: Board) -> list[_Tree]:
    """Return the pairs of paths below which nearly everything fits."""
    ends: dict[tuple[str, ...], list[KeyFamily]] = defaultdict(list)
    for family in board.wanted:
        ends[_end(family)].append(family)
    moves: dict[tuple[str, str], Pairs] = defaultdict(list)
    for old in board.stored:
        partners = ends.get(_end(old), ())
        for new in partners if len(partners) <= _MOST_ALIKE else ():
            if old.members == new.members and (move := _move(old.template, new.template)):
                moves[move].append((old, new))
    stored, wanted = _counted(board.stored), _counted(board.wanted)
    return [
        _Tree(old_path, new_path, pairs)
        for (old_path, new_path), pairs in moves.items()
        if len(pairs) >= _LEAST and len(pairs) >= _MOST_OF * max(stored[old_path], wanted[new_path])
    ]


def _end(family: KeyFamily) -> tuple[str, ...]:
    return tuple(family.segments[-2:])


def _move(old: str, new: str) -> tuple[str, str] | None:
    """Return the paths that are left without the segments that both templates end with."""
    first, second = old.split("."), new.split(".")
    while first and second and first[-1] == second[-1]:
        first.pop()
        second.pop()
    return (".".join(first), ".".join(second)) if first and second else None


def _counted(families: Sequence[KeyFamily]) -> Counter[str]:
    """Return {path: how many families stand below it}."""
    counts: Counter[str] = Counter()
    for family in families:
        segments = family.segments
        counts.update(".".join(segments[:length]) for length in range(1, min(len(segments), _DEEPEST)))
    return counts


def _is_opposed(tree: _Tree) -> bool:
    one, two = (
        {word for part in path.split(".") for word in words_of(part)} for path in (tree.old, tree.new)
    )
    return opposed(one, two) or no_weight(tree.old) != no_weight(tree.new)
