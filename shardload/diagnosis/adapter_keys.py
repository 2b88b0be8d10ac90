"""Keys of a LoRA adapter among those of a model."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from shardload.errors import Wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LORA = frozenset({"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"})
"""The segments of the keys that PEFT gives to what LoRA trains."""


def adapter_keys(keys: Iterable[str], slots: Iterable[str]) -> tuple[str, ...]:
    """Return the keys of LoRA's tensors; none for a model that has layers for them."""
    found = tuple(key for key in keys if ".lora_" in key and not LORA.isdisjoint(key.split(".")))
    return () if found and any(".lora_" in key for key in slots) else found


def has_base(stored: Iterable[str], keys: Sequence[str]) -> bool:
    """Whether most weights that the adapter changes are stored beside it."""
    names = set(stored) if keys else set()
    paths = {key.partition(".lora_")[0] for key in keys}
    there = sum(f"{path}.weight" in names or f"{path}.base_layer.weight" in names for path in paths)
    return 2 * there > len(paths)


def adapter_cure(adapter: str | None, base: str) -> Wording:
    """Return what loads an adapter, known by its path or repo, on its base."""
    given = ... if adapter is None else adapter
    if base:
        return Wording("pass {0} as the place and {adapter}", shlex.quote(base), adapter=given)
    return Wording("load its base, with the adapter on top: {adapter}", adapter=given)
