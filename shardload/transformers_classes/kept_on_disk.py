"""The stored tensors that a class keeps in float32 when its checkpoint is written in half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shardload.keymap import KeyMap, leaves
from shardload.keymap.derived import stored_as
from shardload.model.shell import modules_of
from shardload.transformers_classes import conversions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.keymap import Derived
    from shardload.model.shell import Shell


def kept_on_disk(shell: Shell, tensors: Mapping[str, Derived], dtype: torch.dtype | None) -> frozenset[str]:
    """Return the names among `tensors` that a model of this shell loads in float32 when it is loaded in `dtype`.

    `tensors` are a checkpoint's: where the class has them under other names or in other parts, its conversion tells.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return frozenset()
    slots = {name: slot for name, slot in shell.slots.items() if slot.is_stored}
    kept = [
        name
        for name, wanted in shell.dtypes(dtype).items()
        if wanted is torch.float32 and slots[name].dtype.is_floating_point
    ]
    if not kept:
        return frozenset()
    whole = {name: stored_as(name, tensor) for name, tensor in tensors.items()}
    rules = conversions(shell.tree.kinds, modules_of(shell.model), slots, whole)
    mapped = KeyMap(rules).map_headers(whole).tensors
    return frozenset(leaf.name for name in kept if name in mapped for leaf in leaves(mapped[name]))
