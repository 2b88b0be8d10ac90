"""Solution: the keys of a checkpoint and a model paired stage by stage, and the map that it amounts to, tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardload.diagnosis.pairing.board import Board
from shardload.diagnosis.pairing.buffers import drop_recomputed
from shardload.diagnosis.pairing.cure import Cure
from shardload.diagnosis.pairing.fused import pair_fused
from shardload.diagnosis.pairing.numbered import pair_named_parts, pair_shifted
from shardload.diagnosis.pairing.renaming import pair_renamed
from shardload.diagnosis.pairing.stacked import pair_stacked
from shardload.diagnosis.pairing.tied import pair_tied
from shardload.diagnosis.pairing.transposed import turn_squares
from shardload.diagnosis.pairing.unequal import pair_misshapen, pair_other_layers
from shardload.diagnosis.pairing.wrapper import Wrapping, unwrap
from shardload.errors import UsageError
from shardload.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.diagnosis.pairing.board import Link
    from shardload.diagnosis.pairing.key_family import Shape
    from shardload.keymap import Derived

SURE = 0.95
"""The confidence from which a rule may be applied without being asked, if no layout is unproven."""


def solve(
    stored: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    config: Mapping[str, Any] | None = None,
    module_classes: Mapping[str, str] | None = None,
) -> Board:
    """Return the board after every stage: links for what was found, the rest open."""
    board = Board.of(stored, wanted, module_classes)
    pair_renamed(board)
    pair_stacked(board)
    pair_fused(board)
    pair_renamed(board, least=0.2, alone=_is_akin(board, stored))
    pair_shifted(board)
    pair_named_parts(board)
    drop_recomputed(board)
    pair_other_layers(board)
    pair_misshapen(board)
    pair_tied(board, config or {})
    turn_squares(board)
    return board


def _is_akin(board: Board, stored: Mapping[str, Shape]) -> bool:
    """Whether most keys have been explained: only then a tensor's shape alone says which one it is."""
    left = sum(len(family.members) for family in board.stored)
    return 2 * left <= len(stored)


@dataclass
class Solution:
    """What pairing found: `wrappings` first, then the links of `board`, whose rules are `cure`.

    `key_map` is all of it, tried on the headers; `filled` are the model's keys that it fills with their shape,
    `names` the stored keys under the names that they have without their wrappings. `failed` says why the map of
    all links could not be carried out, where that is so; no map is given then.
    """

    wrappings: list[Wrapping]
    board: Board
    cure: Cure
    key_map: KeyMap = field(default_factory=KeyMap)
    names: dict[str, str] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    failed: str = ""

    @classmethod
    def of(
        cls,
        stored: Mapping[str, Derived],
        wanted: Mapping[str, Shape],
        config: Mapping[str, Any],
        module_classes: Mapping[str, str],
    ) -> Solution:
        """Pair the keys, make the map and try it."""
        shapes = {key: ref.shape for key, ref in stored.items()}
        wrappings = unwrap(shapes, wanted)
        names = {key: key for key in stored}
        key_map = KeyMap()
        for wrapping in wrappings:
            names = {key: wrapping.names[name] for key, name in names.items()}
            key_map += wrapping.key_map
        board = solve({names[key]: shape for key, shape in shapes.items()}, wanted, config, module_classes)
        solution = cls(wrappings, board, Cure(board), key_map, names)
        solution._try(stored, wanted)
        return solution

    def _try(self, stored: Mapping[str, Derived], wanted: Mapping[str, Shape]) -> None:
        whole = KeyMap((*self.key_map.rules, *self.cure.whole.rules))
        try:
            table = whole.map_headers(dict(stored)).tensors
        except UsageError as error:
            self.failed = str(error)
            self.key_map = KeyMap()
            table = dict(stored)
        else:
            self.key_map = whole
        self.filled = {key for key, shape in wanted.items() if key in table and table[key].shape == shape}

    def links(self, *kinds: str) -> list[Link]:
        """Return the links of some kinds."""
        return [link for link in self.board.links if link.kind in kinds]

    @property
    def confidence(self) -> float:
        """The lowest confidence of any rule."""
        return min((link.confidence for link in self.board.links), default=1.0)

    @property
    def unproven(self) -> tuple[str, ...]:
        """What names and shapes can't show, each said once."""
        return tuple(dict.fromkeys(link.unproven for link in self.board.links if link.unproven))

    @property
    def is_sure(self) -> bool:
        """Whether the map may be applied without being asked."""
        return not self.failed and self.confidence >= SURE and not self.unproven
