"""The JSON files of a checkpoint: index, config, settings. They are untrusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload._system.file_kind import REFETCH
from shardload._system.json_text import NoJsonError, parse_json
from shardload.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.checkpoint.sources.source import Source
    from shardload.keymap import Derived

_LARGEST = 64 * 2**20  # bytes; the index of 92,000 tensors has 9 MB


def read_json(source: Source, name: str) -> Any:
    """Return the JSON document `name` of a source.

    Raises CorruptError for what is no JSON, naming what it is, for an object with a key twice, a file over 64 MB, and
    one whose parsing would take over 180 MB of memory.
    """
    file = source.open(name)
    if file.size > _LARGEST:
        raise CorruptError(f"{name} is {file.size:,} bytes: too large for a JSON file", where=source.label)
    try:
        return parse_json(file.read_at(0, file.size), name)
    except NoJsonError as error:
        raise CorruptError(
            f"{name} is no valid JSON: {error}",
            where=source.label,
            cure=error.cure or REFETCH,
            code=error.code,
        ) from error


def read_object(source: Source, name: str) -> dict[str, Any]:
    """Return the JSON object `name` of a source. Raises CorruptError as `read_json`, and for any other value."""
    document = read_json(source, name)
    if not isinstance(document, dict):
        raise CorruptError(f"{name} holds no JSON object", where=source.label, cure=REFETCH)
    return document


def read_config(source: Source) -> dict[str, Any] | None:
    """Return a repo's config.json, or None where there is none. Raises CorruptError unless it is a JSON object."""
    if "config.json" not in source.names():
        return None
    return read_object(source, "config.json")


def config_beside(
    source: Source, named: str | None, metadata: Mapping[str, str], tensors: Mapping[str, Derived]
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return a repo's config.json and warnings: a broken one beside a file that the caller `named` is one.

    Without one it is what a GGUF file says of its model.
    """
    try:
        config = read_config(source)
        if config is None and "gguf" in metadata:
            from shardload.checkpoint.gguf_model import gguf_config

            config = gguf_config(metadata, tensors)
        return config, []
    except CorruptError as error:
        if named is None:
            raise
        return None, [f"config.json beside {named} is not used: {error.what}"]
