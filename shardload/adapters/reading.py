"""From an opened adapter file to its content: the format is told, every key sorted, names mapped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardload.adapters.adapter import AdapterContent, ReadOptions, listing
from shardload.adapters.formats import format_of
from shardload.errors import UsageError
from shardload.keymap import KeyMap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shardload.adapters.adapter import AdapterFile


def read_content(
    file: AdapterFile,
    *,
    format: str = "auto",  # noqa: A002 - the name in the public call
    options: ReadOptions | None = None,
    key_map: KeyMap | Mapping[str, str | None] | None = None,
) -> AdapterContent:
    """Return what an adapter file holds, from its headers and its config; no weight is read.

    `key_map` maps the names of the model that was trained to those of the model at hand, the base's tensors
    (`h.{}.attn.weight`) and module paths (`h.{}.attn`) alike. What it drops is left out, and a warning says so.
    Raises what `AdapterFormat.read` raises.
    """
    content = format_of(file, format).read(file, options or ReadOptions())
    keys = KeyMap.of(key_map)
    return content if not keys.rules else _renamed(content, keys)


def checked_options(alpha: float | None, enable_lora: Sequence[bool] | None, *, strict: bool) -> ReadOptions:
    """Return the caller's options; raises UsageError for an alpha or parts that no adapter can have."""
    if alpha is not None and not (isinstance(alpha, (int, float)) and -1e12 < alpha < 1e12):
        raise UsageError(f"alpha must be a number, not {alpha!r}", where="alpha")
    if enable_lora is not None and not (enable_lora and all(isinstance(part, bool) for part in enable_lora)):
        raise UsageError(
            f"enable_lora must be a list of True and False, not {enable_lora!r}", where="enable_lora"
        )
    return ReadOptions(
        strict=strict,
        alpha=None if alpha is None else float(alpha),
        enable_lora=None if enable_lora is None else tuple(enable_lora),
    )


def _renamed(content: AdapterContent, keys: KeyMap) -> AdapterContent:
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
