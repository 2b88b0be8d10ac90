"""Evidence: what speaks for a link and for none of its rivals; links without any are withdrawn, or called unproven."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.name import CONTENT, contradicts, name_of
from shardload.diagnosis.pairing.words import GENERIC_LEAVES
from shardload.keys import split_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shardload.diagnosis.pairing.board import Board, Link
    from shardload.diagnosis.pairing.key_family import KeyFamily
    from shardload.keys import Indices

_NAMED = frozenset({"rename", "transpose"})
_UNSURE = 0.9  # the most confidence of a link for which only shape and place speak
_WEAK = frozenset({"norm", "conv", *"0123456789"})  # words that many tensors of a model have
_PLACES = frozenset({"pre", "post", *"0123456789"})  # words that say where in its module a tensor is
_LINEAR = frozenset({"o", "up", "down"})  # what is called `dense` or `proj` as well
_SIZED = frozenset({"up", "down"})  # the first and the second of two layers, where their sizes say so
Move = tuple[str, str]


def withdraw_guesses(board: Board) -> None:
    """Take back the links for which nothing speaks that does not speak for another pair as well.

    Names, the pairs around a link, and its place are evidence. Where all tensors of a list of layers have a partner,
    or lists hold as many open tensors of each shape on both sides, the last pair of a shape stays without a name, as an
    unproven one; elsewhere such tensors are open again.
    """
    board.withdraw(_uneven(board))
    proof = _Proof(board)
    while True:
        found = [link for link in proof.open_links() if proof.holds(link)]
        if not found:
            break
        for link in found:
            proof.accept(link)
    guesses = proof.open_links()
    while True:
        lists = _open_in(board.stored), _open_in(board.wanted)
        gone = {id(link): link for link in guesses if not proof.is_last(link, lists)}
        if not gone:
            break
        board.withdraw(list(gone.values()))
        guesses = [link for link in guesses if id(link) not in gone]
    doubted = {}
    for link in guesses:
        doubt = f"{link.stored[0].template} is {link.wanted[0].template} by shape and place alone"
        sure = min(link.confidence, _UNSURE)
        doubted[id(link)] = replace(link, confidence=sure, unproven=link.unproven or doubt)
    board.links = [doubted.get(id(link), link) for link in board.links]


def _open_in(families: Sequence[KeyFamily]) -> dict[str, Counter[object]]:
    """Return {list of layers: how many open families of each signature it holds}."""
    found: dict[str, Counter[object]] = defaultdict(Counter)
    for family in families:
        found[_list_of(family)][family.unordered] += 1
    return dict(found)


def _uneven(board: Board) -> list[Link]:
    """Return the links that change the order of layers.

    Those are shifted links in lists whose families are not all shifted alike, and links of equal numbers between lists
    that begin at different ones.
    """
    shifts: dict[Move, set[tuple[int, ...]]] = defaultdict(set)
    for old, new, offset in (
        *((family, family, ()) for family in board.exact),
        *((*_pairs(link)[0], link.offset) for link in board.links if link.wanted),
    ):
        if old.arity and new.arity:
            shifts[_list_of(old), _list_of(new)].add(offset[:1] or (0,))
    first = [
        {family.template: min(family.members) for family in side}
        for side in (board.first_stored, board.first_wanted)
    ]
    return [
        link
        for link in board.links
        if link.wanted
        and (
            (any(link.offset) and len(shifts[_list_of(link.stored[0]), _list_of(link.wanted[0])]) > 1)
            or (not any(link.offset) and _begin_apart(link, *first))
        )
    ]


def _begin_apart(link: Link, stored: Mapping[str, Indices], wanted: Mapping[str, Indices]) -> bool:
    """Whether the numbers of a link's keys are equal, and those of the families that they belong to begin apart."""
    begins = []
    numbers = []
    for family, first in ((link.stored[0], stored), (link.wanted[0], wanted)):
        template, indices = split_key(family.key(next(iter(family.members))))
        numbers.append(indices)
        begins.append(first.get(template, indices))
    return numbers[0] == numbers[1] and begins[0] != begins[1]


class _Proof:
    """The links of a board that have been proven, and the moves of paths that they show."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._moves: Counter[Move] = Counter()
        self._proven: set[int] = set()
        self._stored: dict[object, list[KeyFamily]] = defaultdict(list)
        self._wanted: dict[object, list[KeyFamily]] = defaultdict(list)
        self._first = tuple(
            {family.template: family for family in side} for side in (board.first_stored, board.first_wanted)
        )
        self._partner: dict[int, KeyFamily] = {}
        for link in board.links:
            self._partner |= {id(old): new for old, new in _pairs(link)}
            self._partner |= {id(new): old for old, new in _pairs(link)}
        for side, now, first in (
            (self._stored, board.stored, board.first_stored),
            (self._wanted, board.wanted, board.first_wanted),
        ):
            linked = [
                family
                for link in board.links
                for family in (link.stored if now is board.stored else link.wanted)
            ]
            for family in {id(family): family for family in (*first, *now, *linked)}.values():
                side[_kind(family)].append(family)
        self._beside = [
            Counter(_place(family) for group in side.values() for family in group)
            for side in (self._stored, self._wanted)
        ]
        stored = [*board.exact, *board.stored, *(family for link in board.links for family in link.stored)]
        self._sizes = Counter(shape for family in stored for shape in _sizes(family))
        self._modules: dict[Move, list[KeyFamily]] = defaultdict(list)
        for link in board.links:
            if link.wanted:
                self._modules[_parent(link.stored[0]), _parent(link.wanted[0])].append(link.stored[0])
        for family in board.exact:
            self._moves.update(_moves(family.template, family.template))

    def open_links(self) -> list[Link]:
        return [link for link in self._board.links if link.wanted and id(link.stored[0]) not in self._proven]

    def accept(self, link: Link) -> None:
        self._proven.add(id(link.stored[0]))
        for old, new in _pairs(link):
            self._moves.update(_moves(old.template, new.template))

    def holds(self, link: Link) -> bool:
        """Whether the names of a link agree, and no rival's do as much. What joins or cuts goes by names already."""
        old, new = _pairs(link)[0]
        if link.shape_mismatch:
            agree = name_of(old.template).telling == name_of(new.template).telling and not contradicts(
                old, new
            )
        else:
            agree = link.kind not in _NAMED or self._agree(old, new)
        return agree and not any(self._has_rival(old, new) for old, new in _pairs(link))

    def is_last(self, link: Link, lists: Sequence[Mapping[str, Counter[object]]]) -> bool:
        """Whether a link leaves nothing open that it could have taken where it stands, and no word contradicts it.

        `lists` are the lists of layers, of both sides, in which something is open: as much of the same shapes on both
        sides, or two blocks are not built alike.
        """
        old, new = link.stored[0], link.wanted[0]
        if link.kind not in _NAMED or link.shape_mismatch or contradicts(old, new):
            return False
        if not old.arity:
            alike = name_of(old.template).telling == name_of(new.template).telling
            return not any(lists) and (alike or self._is_distinct(link)) and not self._has_rival(old, new)
        have, lacking = lists[0].get(_list_of(old), Counter()), lists[1].get(_list_of(new), Counter())
        return have == lacking and old.unordered not in have and not self._has_rival(old, new)

    def _is_distinct(self, link: Link) -> bool:
        """Whether no other tensor has the shape of a link's, or that of one of the same module."""
        old, new = link.stored[0], link.wanted[0]
        beside = self._modules[_parent(old), _parent(new)]
        return any(
            len(shape) > 1 and self._sizes[shape] == 1 for family in beside for shape in _sizes(family)
        )

    def _agree(self, old: KeyFamily, new: KeyFamily) -> bool:
        if contradicts(old, new):
            return False
        one, two = name_of(old.template), name_of(new.template)
        first, second = self._meant(0, old, new), self._meant(1, new, old)
        common = first & second - {"token"}
        if one.generic != two.generic and one.telling != two.telling:
            # `attention.dense` for `attention.o_proj`: a linear layer's name that says nothing, in its place.
            return self._in_place(old, new) and bool((two if one.generic else one).telling & _LINEAR)
        if common <= _WEAK and self._shared(old, new) <= len(common) and (one.before or two.before):
            return False  # two norms, and nothing around them that agrees
        if self._same_rank(old, new):
            return True
        lone = (first ^ second) & CONTENT - one.near - two.near
        return bool(common) and not lone

    def _meant(self, side: int, family: KeyFamily, other: KeyFamily) -> frozenset[str]:
        """Return the words of a family's last module, and of the one before where only the other one's say more.

        `num_speakers.output_proj` and `num_speakers_proj` are one tensor where the module has no other of that shape.
        """
        name, rival = name_of(family.template), name_of(other.template)
        alone = self._beside[side][_place(family)] == 1
        return (
            name.telling | name.near
            if name.telling <= _PLACES and not rival.telling <= _PLACES and alone
            else name.telling
        )

    def _in_place(self, old: KeyFamily, new: KeyFamily) -> bool:
        return _parent(old) == _parent(new) or self._moves[(_parent(old), _parent(new))] > 0

    def _same_rank(self, old: KeyFamily, new: KeyFamily) -> bool:
        """Whether both are the same of their siblings in order: of norms, of numbers, or of sizes that differ."""
        last = {old.segments[-1], new.segments[-1]}
        if not last <= GENERIC_LEAVES or not self._board.likeness.same_rank(old.template, new.template):
            return False
        named = [bool(name_of(family.template).telling & _SIZED) for family in (old, new)]
        return named[0] == named[1] or self._beside[0][_place(old)] == 1

    def _has_rival(self, old: KeyFamily, new: KeyFamily) -> bool:
        whole_old, whole_new = self._whole(old, 0), self._whole(new, 1)
        return self._is_challenged(old, new) or (
            (whole_old, whole_new) != (old, new) and self._is_challenged(whole_old, whole_new)
        )

    def _whole(self, family: KeyFamily, side: int) -> KeyFamily:
        """Return the family that a part of one, such as `h.0.w` of `h.{}.w`, was cut from."""
        template, _ = split_key(family.key(next(iter(family.members))))
        return self._first[side].get(template, family)

    def _is_challenged(self, old: KeyFamily, new: KeyFamily) -> bool:
        olds, news = self._stored[_kind(old)], self._wanted[_kind(new)]
        if not self._board.proving.allows(len(olds) + len(news), (old, new)):
            return True  # not known, and so not proven
        own = self._shared(old, new)
        return any(
            other.template != old.template and not self._beats(own, old, new, other, new) for other in olds
        ) or any(
            other.template != new.template and not self._beats(own, old, new, old, other) for other in news
        )

    def _beats(self, own: int, old: KeyFamily, new: KeyFamily, rival: KeyFamily, place: KeyFamily) -> bool:
        """Whether more speaks for (old, new) than for (rival, place), one of which is the same."""
        theirs = self._shared(rival, place)
        other = self._partner.get(id(rival if rival is not old else place))
        if other is not None:  # the rival has a partner of its own: both pairs against both pairs exchanged
            pair = (rival, other) if rival is not old else (other, place)
            swapped = (old, other) if rival is not old else (other, new)
            return own + self._shared(*pair) > theirs + self._shared(*swapped)
        return own > theirs

    def _shared(self, old: KeyFamily, new: KeyFamily) -> int:
        """Return how much around two families agrees: words of their paths, and moves that others have made."""
        one, two = name_of(old.template), name_of(new.template)
        words = len((one.before | one.telling) & (two.before | two.telling))
        return words + sum(move in self._moves for move in _moves(old.template, new.template))


def _pairs(link: Link) -> list[tuple[KeyFamily, KeyFamily]]:
    return [(old, new) for old in link.stored for new in link.wanted]


def _kind(family: KeyFamily) -> object:
    """Return what rivals have in common: shapes, numbers, and how the name ends. Only paths tell them apart."""
    name = name_of(family.template)
    return family.unordered, name.leaf, name.telling


def _parent(family: KeyFamily) -> str:
    segments = family.template.split(".")
    return ".".join(segments[: -2 if segments[-1] in GENERIC_LEAVES else -1])


def _sizes(family: KeyFamily) -> set[tuple[int, ...]]:
    return {tuple(sorted(shape)) for shape in family.members.values()}


def _place(family: KeyFamily) -> object:
    """Return what siblings of one shape have in common."""
    return _parent(family).rpartition(".")[0], family.unordered


def _list_of(family: KeyFamily) -> str:
    """Return the path of the list of layers that a family stands in; a number that became a name counts again."""
    template, _ = split_key(family.key(next(iter(family.members))))
    return template.partition("{}")[0]


@lru_cache(maxsize=20_000)
def _moves(old: str, new: str) -> tuple[Move, ...]:
    """Return the paths that a pair of templates shows to be each other's, the nearest first."""
    return tuple(_moves_of(old.split("."), new.split(".")))


def _moves_of(first: Sequence[str], second: Sequence[str]) -> Iterator[Move]:
    for length in range(1, min(len(first), len(second)) + 1):
        yield ".".join(first[:-length]), ".".join(second[:-length])
