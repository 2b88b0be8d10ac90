"""Settings of generation that stand in config.json: transformers 5 takes them up, and keeps none in its configs."""

from __future__ import annotations

import copy
import importlib
import sys
from typing import TYPE_CHECKING, Any

from shardload.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


def take_from_config_json(model: nn.Module, settings: Mapping[str, Any], where: str) -> str | None:
    """Set `model.generation_config` as transformers 5 does for a repo without generation_config.json.

    `settings` are the entries of config.json, `where` is its place. Returns a note on the settings that the class did
    not find in its config, or None; transformers 4 leaves them in the config, and the class finds them. Raises
    CorruptError for settings that are refused.
    """
    if "transformers.core_model_loading" not in sys.modules or not model.can_generate():  # type: ignore[operator]
        return None
    generation: Any = importlib.import_module("transformers.generation")
    if type(model).adjust_generation_fn is not generation.GenerationMixin.adjust_generation_fn:  # type: ignore[attr-defined]
        return None  # a class with a way of its own
    try:
        found = generation.GenerationConfig.from_model_config(copy.deepcopy(dict(settings)))
    except Exception as error:
        raise CorruptError(
            f"config.json holds settings of generation that are refused: {type(error).__name__}: {error}",
            where=where,
            cure="correct them, or move them to generation_config.json",
        ) from error
    before = model.generation_config.to_dict()  # type: ignore[operator, union-attr]
    model.generation_config = found
    moved = [
        name for name, value in found.to_dict().items() if value is not None and value != before.get(name)
    ]
    return f"{', '.join(moved)} of config.json: on model.generation_config" if moved else None
