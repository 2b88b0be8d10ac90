"""Old and new keys of real model families, with the truth: what transformers' own checkpoint conversions do.

A family's model is built small, every element of its state dict gets a number of its own, and the conversion's
reverse turns it into a checkpoint of the older layout. Which new element came from where can then be read off.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_AUTO_TABLES = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_MASK_GENERATION_MAPPING_NAMES",
    "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)
_LAYERS = ("layers", "n_layer", "depth", "blocks", "n_layers")
_LARGEST = 60_000_000  # elements of a model that is still worth building


@dataclass
class Pair:
    """One family: the checkpoint of the old layout, and the state dict that the model wants."""

    family: str
    class_name: str
    model: nn.Module
    old: dict[str, torch.Tensor]
    new: dict[str, torch.Tensor]
    shared_with: frozenset[str]


def families() -> dict[str, str]:
    """Return {model type: package} of everything that transformers has a model class for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

    return {kind: model_type_to_module_name(kind) for kind in CONFIG_MAPPING_NAMES}


def build(model_type: str) -> Pair | None:
    """Return the family's pair, or None where it has no conversion or can't be built small."""
    with _quiet():
        for scale in (16, 8, 4, 2, 1):
            try:
                model = _small_model(model_type, scale)
            except Exception:
                continue
            if model is None:
                return None
            return _pair(model_type, model)
    return None


def _pair(model_type: str, model: nn.Module) -> Pair | None:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
        revert_weight_conversion,
    )

    transforms = get_model_conversion_mapping(model, add_legacy=False)
    if not transforms:
        return None
    new = _numbered(model)
    model._weight_conversions = transforms
    model.to_empty(device="meta")
    try:
        old = {key: value.contiguous() for key, value in revert_weight_conversion(model, new).items()}
    except Exception:
        return None
    if old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old):
        return None
    # A reverse that the conversion itself does not undo is no truth.
    fresh = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [entry for entry in fresh if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in fresh if isinstance(entry, WeightConverter)]
    forward = {rename_source_key(key, renamings, converters)[0] for key in sorted(old)}
    if not forward <= new.keys():
        return None
    shared = frozenset(str(sorted(map(repr, transforms))).split("\n"))
    return Pair(model_type, type(model).__name__, model, old, new, shared)


def _numbered(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict whose elements are all different; tied names share theirs."""
    seen: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    count = 1
    for key, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen[id(value)] = torch.arange(count, count + value.numel(), dtype=torch.int32).reshape(
                value.shape
            )
            count += value.numel()
        state[key] = seen[id(value)]
    return state


def _small_model(model_type: str, scale: int) -> nn.Module | None:
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]()
    _shrink(config, scale)
    for table in _AUTO_TABLES:
        names = getattr(modeling_auto, table, {}).get(model_type)
        for name in [names] if isinstance(names, str) else names or ():
            kind = getattr(transformers, name, None)
            if kind is None:
                continue
            with torch.device("meta"):
                model = kind(config)
            if sum(parameter.numel() for parameter in model.parameters()) > _LARGEST:
                raise ValueError("too large")
            return model
    return None


def _shrink(config: Any, scale: int, depth: int = 0) -> None:
    """Divide the widths of a config, and its sub-configs, and leave a few layers."""
    layers = 3
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and depth < 4:
            _shrink(value, scale, depth + 1)
        elif isinstance(value, bool) or name.startswith("_"):
            continue
        elif isinstance(value, int) and any(word in name for word in _LAYERS) and value > layers:
            setattr(config, name, layers)
        elif isinstance(value, int) and "expert" in name and "size" not in name and value > 8:
            setattr(config, name, 8)
        elif isinstance(value, int) and value >= 64 and scale > 1:
            setattr(config, name, max(value // scale, 1))
        elif isinstance(value, (list, tuple)) and name.endswith(("layer_types", "layers_block_type")):
            setattr(config, name, type(value)(value[:layers]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
