"""One tensor here, several there: q, k and v or gate and up joined (cat), or cut apart (split)."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from shardload.diagnosis.pairing.board import Link
from shardload.diagnosis.pairing.layouts import HALVES, HEADS, ORDER, telling_segment
from shardload.diagnosis.pairing.words import words_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily, Shape
    from shardload.keys import Indices

_ROLES = (("q", "k", "v"), ("gate", "up"), ("k", "v"), ("q", "k"), ("q", "kv"))
_CLEAR = 0.02  # the least lead of the best candidate
_ORDERS = 8  # comparisons that siblings and a whole take, at most
_ATTENTION = frozenset(["q", "k", "v", "kv"])
_PARTS = frozenset(role for roles in _ROLES for role in roles)
_Named = dict[str, "KeyFamily"]


class _Found(NamedTuple):
    score: float
    whole: KeyFamily
    parts: tuple[KeyFamily, ...]
    dim: int
    spelled: bool


def pair_fused(board: Board) -> None:
    """Link a family with the siblings whose sizes add up to it; names say which is which."""
    for splits in (True, False):
        while found := _clear(_candidates(board, splits=splits)):
            board.add(*[_link(item, splits=splits) for item in found])


def _link(found: _Found, *, splits: bool) -> Link:
    return Link(
        "split" if splits else "cat",
        (found.whole,) if splits else found.parts,
        found.parts if splits else (found.whole,),
        confidence=0.97 if found.spelled else 0.8,
        dim=found.dim,
        unproven=_doubt(found),
    )


def _doubt(found: _Found) -> str:
    words = {word for part in found.parts for word in words_of(telling_segment(part.template))}
    if words & _ATTENTION:
        return HEADS
    if {"gate", "up"} <= words:
        return "" if found.spelled else HALVES
    return ORDER


def _candidates(board: Board, *, splits: bool) -> list[_Found]:
    wholes, parts = (board.stored, board.wanted) if splits else (board.wanted, board.stored)
    groups = _sibling_groups(parts)
    found: list[_Found] = []
    for whole in wholes:
        siblings = groups.get((whole.index, leaf_of(whole.template), _first(whole)), [])
        if not board.effort.allows(_ORDERS * len(siblings), (whole,)):
            continue
        for named in siblings:
            for chosen, spelled in _in_order(whole, named):
                dim = joining_dim(whole, chosen)
                if dim is not None:
                    score = _score(board, whole, chosen, splits=splits)
                    found.append(_Found(score, whole, chosen, dim, spelled))
    return sorted(found, key=_strength, reverse=True)


def _strength(item: _Found) -> tuple[bool, int, float]:
    """Return the sort key of candidates: a name that spells the order, then more parts, then likeness."""
    return item.spelled, len(item.parts), item.score


def _clear(found: Sequence[_Found]) -> list[_Found]:
    """Return the candidates that beat every other one that shares a family with them; the strongest come first."""
    strongest: dict[int, list[_Found]] = defaultdict(list)
    for item in found:
        for family in (item.whole, *item.parts):
            if len(strongest[id(family)]) < 2:
                strongest[id(family)].append(item)
    return [
        item
        for item in found
        if not any(
            other is not item and (*_strength(other)[:2], other.score + _CLEAR) > _strength(item)
            for family in (item.whole, *item.parts)
            for other in strongest[id(family)]
        )
    ]


def _score(board: Board, whole: KeyFamily, parts: Sequence[KeyFamily], *, splits: bool) -> float:
    pairs = [(whole, part) if splits else (part, whole) for part in parts]
    return sum(board.likeness.score(old.template, new.template) for old, new in pairs) / len(pairs)


def leaf_of(template: str) -> str:
    """Return "bias" for a tensor that is named so, else "weight"."""
    leaf = template.rpartition(".")[2]
    return "bias" if leaf == "bias" or leaf.endswith("_bias") else "weight"


def _sibling_groups(families: Sequence[KeyFamily]) -> dict[tuple[object, str, Shape], list[_Named]]:
    """Return siblings by their numbers, by what they are of their modules, and by the first shape of what they make."""
    groups: dict[tuple[frozenset[Indices], str, str], list[KeyFamily]] = defaultdict(list)
    for family in families:
        segments = family.template.split(".")
        depth = 2 if segments[-1] in {"weight", "bias"} else 1
        parent = ".".join(segments[:-depth])
        groups[(family.index, leaf_of(family.template), parent)].append(family)
    result: dict[tuple[object, str, Shape], list[_Named]] = defaultdict(list)
    for (index, leaf, _), members in groups.items():
        named = _by_role(members)
        for shape in _sums(named):
            result[(index, leaf, shape)].append(named)
    return result


def _by_role(siblings: Sequence[KeyFamily]) -> _Named:
    """Return the siblings by the role that their name says, where it says it of one alone."""
    found: dict[str, list[KeyFamily]] = defaultdict(list)
    for family in siblings:
        for role in _PARTS.intersection(words_of(telling_segment(family.template))):
            found[role].append(family)
    return {role: families[0] for role, families in found.items() if len(families) == 1}


def _sums(named: _Named) -> set[Shape]:
    """Return each shape that some of the siblings have at their first number, joined along one dimension."""
    found: set[Shape] = set()
    for count in range(2, len(named) + 1):
        for chosen in combinations(named.values(), count):
            shapes = [_first(family) for family in chosen]
            for dim in range(min(map(len, shapes))):
                found.add((*shapes[0][:dim], sum(shape[dim] for shape in shapes), *shapes[0][dim + 1 :]))
    return found


def _first(family: KeyFamily) -> Shape:
    """Return the shape at the lowest numbers."""
    return family.members[min(family.members)]


def _in_order(whole: KeyFamily, named: _Named) -> Iterator[tuple[tuple[KeyFamily, ...], bool]]:
    """Yield siblings in their order inside the whole, and whether the name of the whole spells that order."""
    spelled = roles_in(telling_segment(whole.template))
    for roles in dict.fromkeys((spelled, *_ROLES)):
        if len(roles) < 2 or not named.keys() >= set(roles):
            continue
        chosen = tuple(named[role] for role in roles)
        if len(set(map(id, chosen))) == len(chosen):
            yield chosen, roles == spelled


def roles_in(segment: str) -> tuple[str, ...]:
    """Return the roles that a fused name spells, in order: `gate_up_proj` has gate and up, `qkv` q, k and v."""
    roles: list[str] = []
    for word in words_of(segment):
        if word == "qkv":
            roles += ["q", "k", "v"]
        elif word == "kv":
            roles += ["k", "v"]
        elif word in {"q", "k", "v", "gate", "up"}:
            roles.append(word)
    return tuple(roles)


def joining_dim(whole: KeyFamily, parts: Sequence[KeyFamily]) -> int | None:
    """Return the dimension along which the parts add up to the whole at every index, or None."""
    first = next(iter(whole.members.values()))
    for dim in range(len(first)):
        if all(
            adds_up(shape, [part.members[indices] for part in parts], dim)
            for indices, shape in whole.members.items()
        ):
            return dim
    return None


def adds_up(whole: Shape, parts: Sequence[Shape], dim: int) -> bool:
    """Whether shapes joined along `dim` give the whole."""
    if any(len(part) != len(whole) for part in parts):
        return False
    rest = {(*part[:dim], *part[dim + 1 :]) for part in parts}
    return rest == {(*whole[:dim], *whole[dim + 1 :])} and sum(part[dim] for part in parts) == whole[dim]


def pairs_of(siblings: Sequence[KeyFamily]) -> Iterator[tuple[KeyFamily, ...]]:
    """Yield every pair of families, in both orders."""
    for one, two in combinations(siblings, 2):
        yield one, two
        yield two, one
