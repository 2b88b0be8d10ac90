"""A config of another class than its model's: completed with what the model's own config class makes of it."""

from __future__ import annotations

from typing import Any

from shardload.library_parts.release import is_part
from shardload.transformers_shim.configuration_utils import PretrainedConfig


def complete(config: Any, family: Any) -> None:
    """Give a config the attributes that it lacks and `family`, the config class of the library, would have made.

    A repo's own config class, written for transformers 4, has no `rope_parameters` and no settings that came later. A
    name that the config has stays as it is. What was made follows the settings that it was made of (`rope_theta`), as
    often as a model is constructed. A config of the family, and settings that the family refuses, stay whole.
    """
    if not isinstance(family, type) or not is_part(family) or not issubclass(family, PretrainedConfig):
        return
    if isinstance(config, family) or not isinstance(config, PretrainedConfig):
        return
    completed: dict[str, tuple[dict[str, Any], dict[str, Any]]] = vars(config).setdefault(
        "_completed_for", {}
    )
    ours = {name: value for _, made in completed.values() for name, value in made.items()}
    said = {
        name: value
        for name, value in vars(config).items()
        if not name.startswith("_") and not (name in ours and ours[name] is value)
    }
    before, made = completed.get(family.__name__, (None, {}))
    if before == said:
        return
    try:
        whole = vars(family(**said))
    except Exception:  # noqa: BLE001 - it refuses them: nothing is known that is lacking
        completed[family.__name__] = (said, made)
        return
    lacking = [
        name
        for name in whole
        if not name.startswith("_") and (not hasattr(config, name) or (name in made and name not in said))
    ]
    completed[family.__name__] = (said, {name: whole[name] for name in lacking})
    for name in lacking:
        setattr(config, name, whole[name])
