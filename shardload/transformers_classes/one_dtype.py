"""The one dtype in which transformers loads a model of its own classes."""

from __future__ import annotations

import copy
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from shardload.dtypes import torch_dtype
from shardload.errors import Wording
from shardload.tensor_ref import TORCH_NAMES
from shardload.transformers_classes import LIBRARY, pretrained_model

if TYPE_CHECKING:
    import torch

    from shardload.checkpoint.checkpoint import Checkpoint


def is_library_class(made: object) -> bool:
    """Return whether this is a model class of transformers itself; does not import it."""
    base = pretrained_model(LIBRARY)
    own = isinstance(made, type) and made.__module__.startswith("transformers.")
    return own and base is not None and issubclass(made, base)  # type: ignore[arg-type]


def in_one_dtype(
    config: Any, dtype: torch.dtype | None, checkpoint: Checkpoint
) -> tuple[Any, torch.dtype | None]:
    """Return a config that names one dtype for the model and all of its parts, and that dtype.

    It is `dtype`, else the one that the config names, else that of the first floating tensor of the first file, by name
    or in a pickle's own order: what `dtype="auto"` means in transformers. The caller's own config stays as it is.
    """
    named = dtype or getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    if named is None:
        first = [ref for ref in checkpoint.tensors.values() if ref.shard == checkpoint.shards[0].name]
        if checkpoint.format == "safetensors":
            first.sort(key=attrgetter("name"))
        named = next((TORCH_NAMES[ref.dtype] for ref in first if ref.is_floating), None)
    if named is None:
        return config, None
    one = torch_dtype(named)
    changed = copy.deepcopy(config)
    parts = (getattr(changed, name, None) for name in getattr(type(changed), "sub_configs", ()))
    for each in (changed, *(part for part in parts if part is not None)):
        setattr(each, "dtype" if hasattr(each, "dtype") else "torch_dtype", one)
    return changed, one


def cast_note(checkpoint: Checkpoint, dtype: torch.dtype | None) -> str:
    """Return a note on the tensors that are not stored in the one dtype of the model."""
    cast = Counter(
        TORCH_NAMES[ref.dtype]
        for ref in checkpoint.tensors.values()
        if ref.is_floating and torch_dtype(TORCH_NAMES[ref.dtype]) != dtype
    )
    if not cast:
        return ""
    stored = ", ".join(f"{count} in {name}" for name, count in cast.most_common())
    loaded = str(dtype).removeprefix("torch.")
    return Wording(
        "stored {0}: loaded in {1}, as transformers does; {dtype} keeps them", stored, loaded, dtype="stored"
    )
