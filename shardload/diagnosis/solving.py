"""solve: which family of the checkpoint is which of the model's, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.diagnosis.board import Board
from shardload.diagnosis.fused import pair_fused
from shardload.diagnosis.numbered import pair_named_parts, pair_shifted
from shardload.diagnosis.renaming import pair_renamed
from shardload.diagnosis.stacked import pair_stacked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.diagnosis.key_family import Shape


def solve(
    stored: Mapping[str, Shape], wanted: Mapping[str, Shape], module_classes: Mapping[str, str] | None = None
) -> Board:
    """Return the board after every stage: links for what was found, the rest open."""
    board = Board.of(stored, wanted, module_classes)
    pair_renamed(board)
    pair_stacked(board)
    pair_fused(board)
    pair_renamed(board, least=0.2, alone=True)
    pair_shifted(board)
    pair_named_parts(board)
    return board
