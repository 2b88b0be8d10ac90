"""kept_names: what the class that a checkpoint's config.json names keeps in float32, for `shardload convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload.dtypes import parse_dtype
from shardload.keymap import KeyMap

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping

    from shardload.keymap import Names


def kept_names(
    where: str,
    dtype: str,
    key_map: KeyMap | Names | str | os.PathLike[str] | None,
    keywords: Mapping[str, Any],
) -> tuple[Collection[str], str]:
    """Return the names, as they are after the map, and a note where nothing tells them.

    Only a half precision leaves something in float32. The class is one of an installed transformers: no code of the
    repo runs.
    """
    wanted = None if dtype == "auto" else parse_dtype(dtype)
    if wanted not in (torch.float16, torch.bfloat16):
        return (), ""
    from shardload.adapters.merging.class_on_disk import NO_CLASS, ClassOnDisk, names_a_class
    from shardload.checkpoint.checkpoint import open_checkpoint
    from shardload.transformers_classes.kept_on_disk import kept_on_disk

    checkpoint = open_checkpoint(where, **keywords)
    of_class = ClassOnDisk.of(checkpoint)
    if of_class is None:
        return (), NO_CLASS if names_a_class(checkpoint.config) else ""
    tensors = KeyMap.of(key_map).map_headers(checkpoint.tensors).tensors
    return kept_on_disk(of_class.shell, tensors, wanted), ""
