"""The installed transformers' own class that config.json asks for, as a part: by choice, with `remote_base="parts"`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.library_parts.importer import part_module
from shardload.library_parts.model_files import home_of
from shardload.library_parts.release import name_in_library
from shardload.remote_code.auto_map import architectures, model_type
from shardload.remote_code.library import version

if TYPE_CHECKING:
    from collections.abc import Mapping


def part_class_for(settings: Mapping[str, Any], auto_class: str | None = None) -> Any:
    """Return the class that `architectures` names, or that `auto_class` maps the model type to, as a part; or None.

    A config's word opens no other door: what is found is a model class of the library's own files.
    """
    if auto_class is None:
        found = (_of_its_file(name) for name in architectures(settings))
        return next((cls for cls in found if cls is not None), None)
    from shardload.library_parts.auto_tables import auto_name

    config_class = part_config_for(settings)
    table = getattr(auto_name(auto_class), "_model_mapping", {})
    made = table.get(config_class) if config_class is not None else None
    return made[0] if isinstance(made, tuple) else made


def part_config_for(settings: Mapping[str, Any]) -> Any:
    """Return the config class of the model that `architectures` or `model_type` names, as a part; or None."""
    cls = part_class_for(settings)
    if cls is not None:
        return cls.config_class
    kind = model_type(settings)
    from shardload.library_parts.auto_tables import CONFIG_MAPPING

    return CONFIG_MAPPING.get(kind) if kind is not None else None


def _of_its_file(name: str) -> Any:
    home = home_of(name)
    cls = getattr(part_module(home), name) if home else None
    return cls if hasattr(cls, "base_model_prefix") and isinstance(cls, type) else None


def part_origin(cls: Any) -> str:
    """Return where a part came from, as people read it."""
    return f"{name_in_library(cls)} ({version()}, its file run as a part)"
