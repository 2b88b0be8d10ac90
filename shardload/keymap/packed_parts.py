"""The parts of a packed weight: stored beside it, they go where a map's rules move the weight itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.dequantise.signatures import weight_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from shardload.keymap.derived import Derived
    from shardload.keymap.rule import Table


def has_parts(names: Iterable[str]) -> bool:
    """Whether some names are those of parts of packed weights."""
    return any(map(weight_of, names))


def moved_parts(tensors: Mapping[str, Derived], taken: Collection[str], table: Table) -> dict[str, str]:
    """Return the parts that have to follow weights which rules renamed, with the names that they get.

    Rules that name weights, as those of classes do, know nothing of a quantiser. `table` is what rules made of
    `tensors`, `taken` are the stored names that some rule took: a part among them is where the caller wants it. Parts
    of a weight that became several, or a part of another one, stay where they are.
    """
    parts = {
        name: found for name in tensors if (found := weight_of(name)) and tensors[name].name not in taken
    }
    if not parts:
        return {}
    weights = {id(tensors[name]): name for name, _ in parts.values() if name in tensors}
    places: dict[str, list[str]] = {}
    for name, tensor in table.items():
        if id(tensor) in weights:
            places.setdefault(weights[id(tensor)], []).append(name)
    moved: dict[str, str] = {}
    for name, (weight, end) in parts.items():
        place = places.get(weight, [weight])
        if len(place) == 1 and place[0] != weight and place[0].endswith(".weight"):
            new = f"{place[0].removesuffix('weight')}{end}"
            if new not in table:
                moved[name] = new
    return moved
