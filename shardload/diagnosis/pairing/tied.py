"""An output layer that the checkpoint lacks because it shares the embedding's weight: alias."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shardload.diagnosis.pairing.board import Link
from shardload.diagnosis.pairing.words import said_by

if TYPE_CHECKING:
    from shardload.diagnosis.pairing.board import Board
    from shardload.diagnosis.pairing.key_family import KeyFamily


def pair_tied(board: Board, config: Mapping[str, Any]) -> None:
    """Link an output layer without a stored tensor with the stored embedding of its shape, where the config says so.

    Where it says both, at several depths, or nothing, the layer may as well be new.
    """
    places = tied_in(config)
    if not places or tied_in(config, says=False):
        return
    said = f"config.json says so in {', '.join(places)}"
    board.add(
        *[
            Link("alias", (rows,), (new,), 0.97, evidence=said)
            for new, rows, _ in heads_without_weights(board)
        ]
    )


def heads_without_weights(board: Board) -> list[tuple[KeyFamily, KeyFamily, KeyFamily]]:
    """Return the output layers that nothing fills, each with the only embedding of its shape: as stored, as wanted."""
    stored = {family.shape for family in board.stored if not family.arity}
    named = {family.template for family in board.first_stored}  # one of another size is stored, not absent
    placed: dict[object, list[tuple[KeyFamily, KeyFamily]]] = defaultdict(list)
    for family, place in _placed(board):
        if _is_embedding(family):
            placed[family.shape].append((family, place))
    return [
        (new, *placed[new.shape][0])
        for new in board.wanted
        # A stored tensor that has no partner may be the output layer.
        if _is_head(new)
        and new.template not in named
        and new.shape not in stored
        and len(placed[new.shape]) == 1
    ]


def _is_head(family: KeyFamily) -> bool:
    return not family.arity and len(family.shape or ()) == 2 and "head" in _words(family.template)


def tied_in(config: Mapping[str, Any], path: str = "", *, says: bool = True) -> list[str]:
    """Return the fields of a config, nested ones too, that say that embedding and output layer are tied, or not."""
    found = [f"{path}tie_word_embeddings"] if config.get("tie_word_embeddings") is says else []
    for name, value in config.items():
        if isinstance(value, Mapping) and path.count(".") < 4:
            found += tied_in(value, f"{path}{name}.", says=says)
    return found


def _placed(board: Board) -> list[tuple[KeyFamily, KeyFamily]]:
    renames = [link for link in board.links if link.kind == "rename"]
    return [
        *((family, family) for family in board.exact),
        *((link.stored[0], link.wanted[0]) for link in renames),
    ]


def _is_embedding(family: KeyFamily) -> bool:
    words = _words(family.template)
    return not family.arity and "embed" in words and not words & {"position", "type", "patch"}


def _words(template: str) -> set[str]:
    return {word for words in said_by(template.split(".")) for word in words}
