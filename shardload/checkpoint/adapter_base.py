"""adapter_base: the base that an adapter's settings name."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from shardload.checkpoint.json_file import read_object
from shardload.errors import CorruptError

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import Source

_SETTINGS = "adapter_config.json"


def adapter_base(source: Source) -> str:
    """Return the place of the base that an adapter's settings name; "" where there are none, or none is named."""
    base = None
    if _SETTINGS in source.names():
        with suppress(CorruptError, AttributeError):
            base = read_object(source, _SETTINGS).get("base_model_name_or_path")
    return base if isinstance(base, str) else ""
