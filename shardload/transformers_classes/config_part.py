"""The part of a config.json that a config class is for, in a repo that holds several models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def part_name(config_class: Any, settings: Mapping[str, Any]) -> str | None:
    """Return the entry with the settings of a class that is a part of the repo's model; None where all are for it.

    The part lies under the class's `base_config_key` ("vision_config"), or is the only one with its `model_type`:
    transformers looks in the same two places.
    """
    key = getattr(config_class, "base_config_key", None)
    if isinstance(key, str) and isinstance(settings.get(key), Mapping):
        return key
    kind = getattr(config_class, "model_type", None)
    if not kind or settings.get("model_type") in {None, kind}:
        return None
    parts = [
        name
        for name, value in settings.items()
        if isinstance(value, Mapping) and value.get("model_type") == kind
    ]
    return parts[0] if len(parts) == 1 else None


def settings_for(config_class: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings that a config class is for. A dtype of the whole holds for a part that names none."""
    name = part_name(config_class, settings)
    if name is None:
        return settings
    part = settings[name]
    shared = () if {"dtype", "torch_dtype"} & part.keys() else ("dtype", "torch_dtype")
    return {**{each: settings[each] for each in shared if each in settings}, **part}
