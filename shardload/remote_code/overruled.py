"""A config whose settings the caller overrules: `num_layers=6` beside the repo, as transformers takes it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardload.keywords.translation import Settings
    from shardload.remote_code.plain_config import LoadedConfig

_UNDER_ANOTHER_NAME = {"attn_implementation": "_attn_implementation"}
"""Settings that a config keeps under another name: transformers moves them there."""


def overruled(loaded: LoadedConfig, settings: Settings) -> LoadedConfig:
    """Return the config with the caller's settings, each set as an attribute that it has already.

    A setting of a part (`text_config={...}`) sets the part's own attributes. Raises KeywordError for a name that the
    config does not have: a misspelt one.
    """
    config = copy.copy(loaded.config)
    for name, value in settings.values.items():
        _set(config, name, value, settings)
    names = ", ".join(f"{name}={value!r}" for name, value in settings.values.items())
    return replace(loaded, config=config, origin=f"{loaded.origin}, with {names} of the call")


def _set(config: Any, name: str, value: Any, settings: Settings) -> None:
    own = _UNDER_ANOTHER_NAME.get(name, name)
    if own == name and (
        name.startswith("_") or callable(getattr(config, name, None)) or not hasattr(config, name)
    ):
        settings.refuse(
            name, "the repo's config", [each for each in vars(config) if not each.startswith("_")]
        )
    part = getattr(config, name, None)
    if isinstance(value, dict) and hasattr(part, "to_dict"):
        part = copy.copy(part)
        for inner, each in value.items():
            _set(part, inner, each, settings)
        value = part
    setattr(config, own, value)
