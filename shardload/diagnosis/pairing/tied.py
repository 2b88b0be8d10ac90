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

DOUBT = "whether the output layer shares the embedding's numbers"


def pair_tied(board: Board, config: Mapping[str, Any]) -> None:
    """Link an output layer without a stored tensor with the stored embedding of its shape.

    Not where the config says that they differ; where it says both, at several depths, or nothing, that is unproven.
    """
    places, against = tied_in(config), tied_in(config, says=False)
    if against and not places:
        return
    sure = bool(places) and not against
    said = f"config.json says so in {', '.join(places)}" if places else ""
    said += f", and the opposite in {', '.join(against)}" if against else ""
    lacking = {family.template for family in board.wanted}
    confidence, doubt = (0.97, "") if sure else (0.6, DOUBT)
    board.add(
        *[
            Link("alias", (rows,), (new,), confidence, unproven=doubt, evidence=said)
            for new, rows in heads_without_weights(board)
            # A head that lacks its bias too is not stored at all.
            if sure or f"{new.template.rpartition('.')[0]}.bias" not in lacking
        ]
    )


def heads_without_weights(board: Board) -> list[tuple[KeyFamily, KeyFamily]]:
    """Return the output layers that nothing fills, each with the only stored embedding of its shape."""
    stored = {family.shape for family in board.stored if not family.arity}
    placed: dict[object, list[KeyFamily]] = defaultdict(list)
    for family in _placed(board):
        if _is_embedding(family):
            placed[family.shape].append(family)
    return [
        (new, placed[new.shape][0])
        for new in board.wanted
        # A stored tensor that has no partner may be the output layer.
        if _is_head(new) and new.shape not in stored and len(placed[new.shape]) == 1
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


def _placed(board: Board) -> list[KeyFamily]:
    return [*board.exact, *(link.stored[0] for link in board.links if link.kind == "rename")]


def _is_embedding(family: KeyFamily) -> bool:
    words = _words(family.template)
    return not family.arity and "embed" in words and not words & {"position", "type", "patch"}


def _words(template: str) -> set[str]:
    return {word for words in said_by(template.split(".")) for word in words}
