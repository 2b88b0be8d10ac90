"""Solution: the keys of a checkpoint and a model paired stage by stage, and the map of the pairs, tried on headers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from shardload.diagnosis.pairing.board import Board
from shardload.diagnosis.pairing.buffers import drop_recomputed
from shardload.diagnosis.pairing.cure import Cure
from shardload.diagnosis.pairing.evidence import withdraw_guesses
from shardload.diagnosis.pairing.fused import pair_fused
from shardload.diagnosis.pairing.key_family import KeyFamily, families_of
from shardload.diagnosis.pairing.left_over import pair_left_over
from shardload.diagnosis.pairing.moved import pair_moved_trees
from shardload.diagnosis.pairing.numbered import pair_named_parts, pair_shifted
from shardload.diagnosis.pairing.renaming import pair_renamed
from shardload.diagnosis.pairing.rival_sets import rival_sets, without_rivals
from shardload.diagnosis.pairing.stacked import pair_stacked
from shardload.diagnosis.pairing.tied import pair_tied
from shardload.diagnosis.pairing.transposed import turn_squares
from shardload.diagnosis.pairing.twin_trees import pair_twin_trees
from shardload.diagnosis.pairing.unequal import pair_other_layers, pair_shape_mismatches
from shardload.diagnosis.pairing.wrapper import Wrapping, unwrap
from shardload.errors import UsageError
from shardload.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from shardload.diagnosis.pairing.board import Link
    from shardload.diagnosis.pairing.key_family import Shape
    from shardload.keymap import Derived


def solve(
    stored: Sequence[KeyFamily],
    wanted: Sequence[KeyFamily],
    config: Mapping[str, Any] | None = None,
    module_classes: Mapping[str, str] | None = None,
) -> Board:
    """Return the board after all stages: links for the pairs that were found, the other families open."""
    board = Board.of(stored, wanted, module_classes)
    pair_moved_trees(board)
    pair_twin_trees(board)
    pair_renamed(board)
    pair_stacked(board)
    pair_fused(board)
    board.likeness.rank_open(board.stored, board.wanted)
    pair_renamed(board, least=0.2, alone=_is_akin(board, stored))
    pair_shifted(board)
    drop_recomputed(board)
    pair_other_layers(board)
    pair_named_parts(board)
    pair_shape_mismatches(board)
    pair_left_over(board)
    withdraw_guesses(board)
    pair_tied(board, config or {})
    turn_squares(board)
    return board


def _is_akin(board: Board, stored: Sequence[KeyFamily]) -> bool:
    """Whether most keys have been explained: only then a shape that occurs once identifies a tensor."""
    left = sum(len(family.members) for family in board.stored)
    return 2 * left <= sum(len(family.members) for family in stored)


class Left(NamedTuple):
    """What a map leaves: model keys without a tensor, tensors without a place, keys whose shapes differ."""

    missing: dict[str, Shape]
    unexpected: dict[str, Shape]
    misshapen: tuple[str, ...]


@dataclass
class Solution:
    """What pairing has found: `wrappings` first, then the links of `board`, whose rules are `cure`.

    `rivals` are wrappings that explain as much as each other: none is part of the map. `stored` are the
    checkpoint's families under their stored names, `unwrapped` the same without their wrappings, `wanted` the model's.
    `key_map` has all rules, `table` what it makes; `filled` are the model's keys that it fills with the right shape,
    `left` what neither side has a partner for.
    `failed` says why the rules can't be applied to the headers, or is ""; then there is no map.
    """

    stored: list[KeyFamily]
    unwrapped: list[KeyFamily]
    wanted: list[KeyFamily]
    wrappings: list[Wrapping]
    board: Board
    cure: Cure
    rivals: list[Wrapping] = field(default_factory=list)
    key_map: KeyMap = field(default_factory=KeyMap)
    filled: set[str] = field(default_factory=set)
    table: Mapping[str, Derived] = field(default_factory=dict)
    left: Left = field(default_factory=lambda: Left({}, {}, ()))
    failed: str = ""

    @classmethod
    def of(
        cls,
        stored: Mapping[str, Derived],
        wanted: Mapping[str, Shape],
        config: Mapping[str, Any],
        module_classes: Mapping[str, str],
    ) -> Solution:
        """Pair the keys, make the map and try it on the headers."""
        have, want = families_of({key: ref.shape for key, ref in stored.items()}), families_of(wanted)
        plain = unwrap(have, want)
        rivals = plain.rivals or rival_sets(plain.families, want)
        board = solve(
            without_rivals(plain.families, rivals, adds=False),
            without_rivals(want, rivals, adds=True),
            config,
            module_classes,
        )
        solution = cls(have, plain.families, want, plain.wrappings, board, Cure(board), rivals)
        solution._try(stored, wanted)
        return solution

    def _try(self, stored: Mapping[str, Derived], wanted: Mapping[str, Shape]) -> None:
        table: Mapping[str, Derived] = stored
        rules = [rule for wrapping in self.wrappings for rule in wrapping.key_map.rules]
        whole = KeyMap((*rules, *self.cure.whole.rules))
        try:
            table = whole.made(stored) if whole.rules else stored
        except UsageError as error:
            self.failed = str(error)
        else:
            self.key_map = whole
        self.table = table
        self.filled = {
            key for key, shape in wanted.items() if (ref := table.get(key)) is not None and ref.shape == shape
        }
        self.left = Left(
            {key: shape for key, shape in wanted.items() if key not in table},
            {key: ref.shape for key, ref in table.items() if key not in wanted},
            tuple(key for key in wanted if key in table and key not in self.filled),
        )

    @cached_property
    def names(self) -> dict[str, str]:
        """The stored keys -> their names without wrappings."""
        found: dict[str, str] = {}
        for before, after in zip(self.stored, self.unwrapped, strict=True):
            found |= dict(zip(before.names, after.names, strict=True))
        return found

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """Return the stored keys of names without wrappings."""
        if not self.wrappings:
            return list(names)
        return [self._stored_as.get(name, name) for name in names]

    @cached_property
    def _stored_as(self) -> dict[str, str]:
        return {name: key for key, name in self.names.items()}

    def links(self, *kinds: str) -> list[Link]:
        """Return the links of the given kinds."""
        return [link for link in self.board.links if link.kind in kinds]
