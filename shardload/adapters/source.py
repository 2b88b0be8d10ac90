"""open_adapter, read_content: an adapter's files found, and their headers and config read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.adapter import AdapterFile, ReadOptions
from shardload.adapters.formats import FORMATS, other_format
from shardload.adapters.renaming import renamed
from shardload.checkpoint.checkpoint import read_checkpoint
from shardload.checkpoint.index import NOT_WEIGHTS, WeightFiles
from shardload.checkpoint.inner_folders import ADAPTERS, cure_by_folder
from shardload.checkpoint.json_file import read_object
from shardload.checkpoint.sources import find_source
from shardload.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardload.adapters.adapter import AdapterContent, AdapterFormat
    from shardload.checkpoint.sources.source import Source
    from shardload.keymap import KeyMap
    from shardload.where import WhereLike

_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def open_adapter(where: WhereLike) -> AdapterFile:
    """Open an adapter by its headers: a folder, a weight file with its config beside it, or a Hub repo.

    Raises NotFoundError when there is no adapter, CorruptError when its config or its weight file is broken.
    """
    source, only = find_source(where)
    if only is not None and only.rpartition("/")[2] == _CONFIG:
        only = _weights_in(source, only[: -len(_CONFIG)])
    weights = only or _weights_in(source, "")
    config_name = weights[: len(weights) - len(weights.rpartition("/")[2])] + _CONFIG
    config = read_object(source, config_name) if config_name in source.names() else None
    return AdapterFile(read_checkpoint(source, WeightFiles((weights,))), weights, config, config_name)


def read_content(
    file: AdapterFile,
    *,
    format: str = "auto",  # noqa: A002 - the name in the public call
    options: ReadOptions | None = None,
    key_map: KeyMap | Mapping[str, str | None] | None = None,
) -> AdapterContent:
    """Return what an adapter file holds, from its headers and its config; no weight is read.

    `key_map` renames the modules of the file to the model's. Raises what `format_of` and `AdapterFormat.read` raise.
    """
    content = format_of(file, format).read(file, options or ReadOptions())
    return content if key_map is None else renamed(content, key_map)


def format_of(file: AdapterFile, wanted: str = "auto") -> AdapterFormat:
    """Return the format that an adapter file's keys show, or the one that is wanted by name.

    Raises UnsupportedError for an unknown format, UsageError when the file is not in the wanted one.
    """
    peft = FORMATS["peft"]
    return peft if wanted in {"auto", "peft"} and peft.matches(file) else other_format(file, wanted)


def _weights_in(source: Source, folder: str) -> str:
    """Return the adapter's weight file in a folder of the source ("" or "name/")."""
    names = [name for name in source.names() if name.startswith(folder)]
    for weights in _WEIGHTS:
        if folder + weights in names:
            return folder + weights
    single = [
        name
        for name in names
        if name.endswith(_SUFFIXES)
        and "/" not in name[len(folder) :]
        and not name[len(folder) :].startswith(NOT_WEIGHTS)
    ]
    if len(single) == 1:
        return single[0]
    inner = [name.removesuffix(f"/{_CONFIG}") for name in names if name.endswith(f"/{_CONFIG}")]
    cure: str = "pass the folder, the repo or the file that holds adapter_model.safetensors"
    if inner:
        cure = cure_by_folder(source, inner, ADAPTERS)
    raise NotFoundError(
        f"{source.label} holds no adapter",
        where=f"no {' or '.join(_WEIGHTS[:2])} among its {len(names)} files",
        cure=cure,
    )
