"""Tensors whose names fit, perhaps after a rename, and whose shapes do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shardload.keys import split_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.diagnosis.pairing.key_family import Shape
    from shardload.diagnosis.pairing.solution import Solution


class ShapePair(NamedTuple):
    """A key of the model, the model's shape, that of the stored tensor, and the template of the key."""

    key: str
    model: Shape
    stored: Shape
    template: str


def mismatched_shapes(solution: Solution) -> list[ShapePair]:
    """Return the pairs where names fit, perhaps after a rename, and shapes do not."""
    there = {family.template: family for family in solution.wanted}
    pairs = [
        ShapePair(key, model, shape, family.template)
        for family in solution.unwrapped
        if (other := there.get(family.template)) is not None and other.members != family.members
        for key, (indices, shape) in zip(family.names, family.members.items(), strict=True)
        if (model := other.members.get(indices)) is not None and model != shape
    ]
    taken = {pair.key for pair in pairs}
    for link in solution.board.links:
        if link.shape_mismatch:
            old, new = link.stored[0], link.wanted[0]
            template, _ = split_key(new.names[0])
            pairs += [
                ShapePair(key, model, old.members[indices], template)
                for key, (indices, model) in zip(new.names, new.members.items(), strict=True)
                if old.members.get(indices, model) != model and key not in taken
            ]
    turned = {key for link in solution.links("transpose") for key in link.wanted[0].names}
    return [pair for pair in pairs if pair.key not in turned and pair.key not in solution.filled]


def whole_templates(solution: Solution) -> Mapping[str, set[Shape]]:
    """Return {template: shapes} of the model's keys whose stored tensors have the model's shape."""
    there = {family.template: family.members for family in solution.unwrapped}
    whole = {
        family.template: {
            shape
            for indices, shape in family.members.items()
            if there.get(family.template, {}).get(indices) == shape
        }
        for family in solution.wanted
    }
    return {template: shapes for template, shapes in whole.items() if shapes}
