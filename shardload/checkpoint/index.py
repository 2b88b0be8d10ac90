"""find_weight_files: the files that hold a checkpoint's weights, and its index."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardload.checkpoint.json_file import read_json
from shardload.checkpoint.unfinished import cure_of
from shardload.errors import CorruptError, NotFoundError, UsageError, Wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardload.checkpoint.sources.source import Source

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_INDEX_SUFFIX = ".index.json"
_NUMBERED = re.compile(r"(?P<stem>.*?)[-_]?(?P<number>\d{5})-of-(?P<total>\d{5})(?P<rest>\..*)")
NOT_WEIGHTS = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")
"""How the names of a trainer's other files begin."""


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a checkpoint: `shards` in reading order, and the index that names them, if there is one."""

    shards: tuple[str, ...]
    index: str | None = None
    weight_map: dict[str, str] = field(default_factory=dict)
    total_size: int | None = None


def find_weight_files(source: Source, *, only: str | None = None, variant: str | None = None) -> WeightFiles:
    """Choose the weight files of a source: safetensors before .bin, an index before a single file.

    `only` is a file that the caller named (a weight file or an index). `variant` picks
    `model.<variant>.safetensors`, as on the Hub. Raises NotFoundError, UsageError or CorruptError.
    """
    if only is not None:
        return _read_index(source, only) if only.endswith(_INDEX_SUFFIX) else WeightFiles((only,))
    names = source.names()
    present = set(names)
    for candidate in _usual_names(variant):
        if candidate in present:
            return (
                _read_index(source, candidate) if candidate.endswith(".json") else WeightFiles((candidate,))
            )
    if variant is not None:
        raise NotFoundError(
            f"{source.label} has no weights of variant {variant!r}",
            where=", ".join(name for name in names if name.endswith(_WEIGHT_SUFFIXES))
            or "no weight files at all",
        )
    return _unusual_names(source, names)


def _usual_names(variant: str | None) -> list[str]:
    dot = f".{variant}" if variant else ""
    names = []
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        names += [f"{stem}.{suffix}.index{dot}.json", f"{stem}{dot}.{suffix}"]
    return [*names, "adapter_model.safetensors", "adapter_model.bin"]


def _unusual_names(source: Source, names: Sequence[str]) -> WeightFiles:
    """Return weight files with other names if they are unambiguous: one index, one numbered set, or one file."""
    top = [name for name in names if "/" not in name]
    for suffix in _WEIGHT_SUFFIXES:
        indexes = [name for name in top if name.endswith(suffix + _INDEX_SUFFIX)]
        if len(indexes) == 1:
            return _read_index(source, indexes[0])
        files = [name for name in top if name.endswith(suffix) and not name.startswith(NOT_WEIGHTS)]
        if len(files) == 1 and not _NUMBERED.fullmatch(files[0]):
            return WeightFiles((files[0],))
        if files:
            return WeightFiles(_numbered_set(source, files))
    raise _no_checkpoint(source, names)


def _no_checkpoint(source: Source, names: Sequence[str]) -> NotFoundError:
    usual: str = Wording(
        "pass the folder, the repo or the file that holds the weights ({subfolder} for a folder inside a repo)",
        subfolder=...,
    )
    weights = [name.rpartition("/") for name in names if "/" in name and name.endswith(_WEIGHT_SUFFIXES)]
    inner = [folder for folder, _, name in weights if not name.startswith((*NOT_WEIGHTS, "adapter_"))]
    inner = inner or [folder for folder, _, name in weights if name.startswith("adapter_")]
    if inner:
        from shardload.checkpoint.inner_folders import cure_by_folder

        usual = cure_by_folder(source, inner, "weights")
    top = sum("/" not in name for name in names)
    among = f"its {top} files" if top == len(names) else f"the {top} files outside its folders"
    return NotFoundError(
        f"{source.label} holds no checkpoint",
        where=f"no *.safetensors, *.bin, *.pth or *.pt among {among}",
        cure=cure_of(source, usual),
    )


def _numbered_set(source: Source, files: list[str]) -> tuple[str, ...]:
    """Return `x-00001-of-00007` … as shards if the set is whole. Raises UsageError, NotFoundError."""
    matches = [_NUMBERED.fullmatch(name) for name in files]
    sets = {(m["stem"], m["total"], m["rest"]) for m in matches if m}
    if len(sets) != 1 or not all(matches):
        raise UsageError(
            f"{source.label} holds several weight files and no index that orders them",
            where=", ".join(files[:8]),
            cure="pass the file you mean",
        )
    total = int(next(iter(sets))[1])
    have = {int(m["number"]) for m in matches if m}
    lacking = sorted(set(range(1, total + 1)) - have)
    if lacking:
        raise NotFoundError(
            f"{len(lacking)} of {total} shards are missing",
            where=f"{source.label}: numbers {', '.join(map(str, lacking[:20]))}",
            cure=cure_of(source, "fetch the missing files"),
            code="E-SHARDS",
        )
    return tuple(sorted(files))


def _read_index(source: Source, name: str) -> WeightFiles:
    document = read_json(source, name)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptError("the index has no weight_map", where=f"{source.label}: {name}", code="E-INDEX")
    if not all(isinstance(value, str) for value in weight_map.values()):
        raise CorruptError(
            "the index's weight_map holds a file name that is no text",
            where=f"{source.label}: {name}",
            code="E-INDEX",
        )
    folder = name.rpartition("/")[0]
    if folder:
        weight_map = {key: f"{folder}/{value}" for key, value in weight_map.items()}
    shards = tuple(dict.fromkeys(weight_map.values()))
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return WeightFiles(tuple(sorted(shards)), name, weight_map, total if isinstance(total, int) else None)
