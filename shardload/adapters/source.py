"""open_adapter: finds an adapter's weight file and config, and reads their headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardload.adapters.adapter import AdapterFile, listing
from shardload.checkpoint.checkpoint import read_checkpoint
from shardload.checkpoint.index import WeightFiles
from shardload.checkpoint.json_file import read_object
from shardload.checkpoint.sources import find_source
from shardload.errors import NotFoundError, Wording

if TYPE_CHECKING:
    from shardload.checkpoint.sources.source import Source
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


def _weights_in(source: Source, folder: str) -> str:
    """Return the adapter's weight file in a folder of the source ("" or "name/")."""
    names = [name for name in source.names() if name.startswith(folder)]
    for weights in _WEIGHTS:
        if folder + weights in names:
            return folder + weights
    single = [name for name in names if name.endswith(_SUFFIXES) and "/" not in name[len(folder) :]]
    if len(single) == 1:
        return single[0]
    inner = sorted(name.removesuffix(f"/{_CONFIG}") for name in names if name.endswith(f"/{_CONFIG}"))
    cure: str = "pass the folder, the repo or the file that holds adapter_model.safetensors"
    if inner:
        cure = Wording(
            "it holds adapters in folders of their own: pass {subfolder}, one of {0}",
            listing(inner),
            subfolder=...,
        )
    raise NotFoundError(
        f"{source.label} holds no adapter",
        where=f"no {' or '.join(_WEIGHTS[:2])} among its {len(names)} files",
        cure=cure,
    )
