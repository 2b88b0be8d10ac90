"""What is left in two modules whose other tensors have each other: evidence judges it afterwards."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from shardload.diagnosis.pairing.renaming import Choice, link_of
from shardload.diagnosis.pairing.words import GENERIC_LEAVES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily


def pair_left_over(board: Board) -> None:
    """Link the only open families of one signature below two paths of a list of layers that others link.

    The deepest paths come first. Shapes that are each other's transpose are one signature only where nothing has the
    exact shape.
    """
    moves: Counter[tuple[str, str]] = Counter()
    for link in board.links:
        if link.kind in {"rename", "transpose"} and not link.shape_mismatch:
            moves[holder(link.stored[0]), holder(link.wanted[0])] += 1
    moves.update((holder(family), holder(family)) for family in board.exact)
    partner: dict[str, str] = {}
    for (old, new), _ in moves.most_common():
        partner.setdefault(old, new)
    for exact in (True, False):
        _pair_below(board, partner, exact=exact)


def _pair_below(board: Board, partner: Mapping[str, str], *, exact: bool) -> None:
    places: dict[tuple[str, object], tuple[list[KeyFamily], list[KeyFamily]]] = defaultdict(lambda: ([], []))
    for side, families in enumerate((board.stored, board.wanted)):
        for family in families:
            signature = family.signature if exact else family.unordered
            for path in _paths(family) if family.arity else ():
                if side or path in partner:
                    places[path if side else partner[path], signature][side].append(family)
    taken: set[int] = set()
    for _, (olds, news) in sorted(places.items(), key=lambda item: -item[0][0].count(".")):
        old, new = (_only(families, taken) for families in (olds, news))
        if old is not None and new is not None:
            taken |= {id(old), id(new)}
            score = board.likeness.score(old.template, new.template)
            board.add(link_of(board, Choice(score, 1.0, old, new)))


def _paths(family: KeyFamily) -> Iterator[str]:
    """Yield the paths above a family's module, down to the number of its layer."""
    path = holder(family)
    while "{}" in path:
        yield path
        path = path.rpartition(".")[0]


def _only(families: Iterable[KeyFamily], taken: set[int]) -> KeyFamily | None:
    found = [family for family in families if id(family) not in taken]
    return found[0] if len(found) == 1 else None


def holder(family: KeyFamily) -> str:
    """Return the path of what holds the module of a family, or the parameter that is no module's weight or bias."""
    segments = family.segments
    return ".".join(segments[: -2 if segments[-1] in GENERIC_LEAVES else -1])
