"""A config of another class than its model's: completed with what the model's own config class makes of it."""

from __future__ import annotations

from typing import Any

from shardload.library_parts.release import is_part
from shardload.transformers_shim.configuration_utils import PretrainedConfig


def complete(config: Any, family: Any) -> None:
    """Give a config the attributes that it lacks and `family`, the config class of the library, would have made.

    A repo's own config class, written for transformers 4, has no `rope_parameters` and no settings that came later. A
    name that the config has stays as it is. A config of the family, and settings that the family refuses, stay whole.
    """
    if not isinstance(family, type) or not is_part(family) or not issubclass(family, PretrainedConfig):
        return
    if isinstance(config, family) or not isinstance(config, PretrainedConfig):
        return
    done = vars(config).setdefault("_completed_for", [])
    if family.__name__ in done:
        return
    done.append(family.__name__)
    try:
        made = family(**{name: value for name, value in vars(config).items() if not name.startswith("_")})
    except Exception:  # noqa: BLE001 - it refuses them: nothing is known that is lacking
        return
    for name, value in vars(made).items():
        if not name.startswith("_") and not hasattr(config, name):
            setattr(config, name, value)
