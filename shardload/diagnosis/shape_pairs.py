"""Tensors whose names fit, perhaps after a rename, and whose shapes do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardload.diagnosis.finding import Case, Shape

    Pair = tuple[str, Shape, Shape]


def mismatched_shapes(case: Case) -> list[Pair]:
    """Return (model key, model shape, stored shape) where names fit, perhaps after a rename, and shapes do not."""
    solution = case.solution
    there = {family.template: family.members for family in solution.wanted}
    pairs = [
        (family.key(indices), model, shape)
        for family in solution.unwrapped
        if (members := there.get(family.template)) is not None and members != family.members
        for indices, shape in family.members.items()
        if (model := members.get(indices)) is not None and model != shape
    ]
    taken = {name for name, _, _ in pairs}
    for link in solution.board.links:
        if link.shape_mismatch:
            old, new = link.stored[0], link.wanted[0]
            pairs += [
                (new.key(indices), new.members[indices], shape)
                for indices, shape in old.members.items()
                if new.members[indices] != shape and new.key(indices) not in taken
            ]
    turned = {key for link in solution.links("transpose") for key in link.wanted[0].names()}
    return [pair for pair in pairs if pair[0] not in turned and pair[0] not in solution.filled]
