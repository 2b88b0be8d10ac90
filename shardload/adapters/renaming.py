"""key_map for adapters: the module paths of a file renamed to those of the model, by a load's key map."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardload.adapters.adapter import listing
from shardload.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardload.adapters.adapter import AdapterContent


def renamed(content: AdapterContent, key_map: KeyMap | Mapping[str, str | None]) -> AdapterContent:
    """Return what an adapter file holds under the model's names.

    The map may name the base's tensors (`h.{}.attn.weight`) or module paths (`h.{}.attn`). What it drops is left out,
    and a warning says so.
    """
    keys = KeyMap.of(key_map)
    if not keys.rules:
        return content
    dropped: list[str] = []
    mover = _mover(keys)
    loras, replaced, rows = [], [], []
    for lora in content.loras:
        path = mover(lora.path, "weight")
        if path is None:
            dropped.append(lora.path)
        else:
            loras.append(replace(lora, path=path))
    for entry in content.replaced:
        path = mover(entry.path, entry.attribute)
        if path is None:
            dropped.append(entry.name)
        else:
            replaced.append(replace(entry, path=path))
    for row in content.rows:
        path = mover(row.path, "weight")
        if path is None:
            dropped.append(row.path)
        else:
            rows.append(replace(row, path=path))
    warnings = content.warnings
    if dropped:
        warnings += (f"left out by key_map: {listing(dropped)}",)
    return replace(content, loras=tuple(loras), replaced=tuple(replaced), rows=tuple(rows), warnings=warnings)


def _mover(keys: KeyMap) -> Callable[[str, str], str | None]:
    """Return the function that maps a module path, by the name of its tensor or by its own."""

    def move(path: str, attribute: str) -> str | None:
        key = f"{path}.{attribute}"
        moved = keys.apply(key)
        if moved is None:
            return None
        if moved != key:
            return moved.rpartition(".")[0]
        return keys.apply(path)

    return move
