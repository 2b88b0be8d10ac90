"""find_weight_files: the files that hold a checkpoint's weights, and its index."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardload.checkpoint.formats.gguf_parts import parts_of
from shardload.checkpoint.json_file import read_json
from shardload.checkpoint.unfinished import cure_of
from shardload.errors import (
    CorruptError,
    Cures,
    NotFoundError,
    ShardloadError,
    UnsupportedError,
    UsageError,
    Wording,
)
from shardload.keys import collapse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from shardload.checkpoint.sources.source import Source

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_INDEX_SUFFIX = ".index.json"
_NUMBERED = re.compile(r"(?P<stem>.*?)[-_]?(?P<number>\d{5})-of-(?P<total>\d{5})(?P<rest>\..*)")
_OF_RANK = re.compile(r"rank[-_]?\d+[._]|^consolidated\.\d\d\.pth$")
_OPTIMIZER = "optim_states.pt"
"""How the names of DeepSpeed's files of optimizers end: `mp_rank_00_model_states.pt` beside them has the weights."""
_SHOWN = 8  # faults of an index
DISTRIBUTED = ".metadata"
"""The file that lists the tensors of a distributed checkpoint of torch, whose weight files end in `.distcp`."""
_PART_OF_DISTRIBUTED = ".distcp"
NOT_WEIGHTS = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")
"""How the names of a trainer's other files begin."""


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a checkpoint: `shards` in reading order, and the index that names them, if there is one.

    `notes` say to people which other files were not chosen.
    """

    shards: tuple[str, ...]
    index: str | None = None
    weight_map: dict[str, str] = field(default_factory=dict)
    total_size: int | None = None
    notes: tuple[str, ...] = ()


def find_weight_files(source: Source, *, only: str | None = None, variant: str | None = None) -> WeightFiles:
    """Choose the weight files of a source: safetensors before .bin, a whole file before an index of other files.

    That is the order of transformers. An index none of whose files is there gives way to what is whole. `only` is a
    file that the caller named (a weight file or an index). `variant` picks `model.<variant>.safetensors`, as on the
    Hub. Raises NotFoundError, UsageError or CorruptError.
    """
    if only is not None:
        return _of_file(source, only)
    names = source.names()
    present = set(names)
    stale: list[WeightFiles] = []
    for whole, index in _usual_names(variant):
        found = _chosen(source, whole, index, present)
        if found is not None and (present & {*found.shards} or found.index is None):
            return _beside(found, stale)
        stale += [found] if found is not None else []
    if stale:
        other = _set_beside(source, names)
        return _beside(other, stale) if other else stale[0]
    if not any(name.endswith(_WEIGHT_SUFFIXES) for name in names) and (
        quantised := _gguf(source, names, variant)
    ):
        return quantised
    if variant is not None:
        raise NotFoundError(
            f"{source.label} has no weights of variant {variant!r}",
            where=", ".join(name for name in names if name.endswith(_WEIGHT_SUFFIXES))
            or "no weight files at all",
        )
    return _unusual_names(source, names)


def _of_file(source: Source, name: str) -> WeightFiles:
    """Return the weight files that a file stands for that the caller named."""
    if name == DISTRIBUTED or name.endswith(_PART_OF_DISTRIBUTED):
        return _distributed(source)
    if name.endswith(_INDEX_SUFFIX):
        return _read_index(source, name)
    return WeightFiles(parts_of(name) if name.endswith(".gguf") else (name,))


def _usual_names(variant: str | None) -> list[tuple[str, str]]:
    """Return the usual names, each a whole file and the index that may take its place, in transformers' order."""
    dot = f".{variant}" if variant else ""
    kinds = (("model", "safetensors"), ("pytorch_model", "bin"))
    names = [(f"{stem}{dot}.{suffix}", f"{stem}.{suffix}.index{dot}.json") for stem, suffix in kinds]
    return [*names, ("adapter_model.safetensors", ""), ("adapter_model.bin", "")]


def _chosen(source: Source, whole: str, index: str, present: Collection[str]) -> WeightFiles | None:
    """Return the whole file, or the index where there is no whole file or it is one of the index's own."""
    if index not in present:
        return WeightFiles((whole,)) if whole in present else None
    if whole not in present:
        return _read_index(source, index)
    try:
        indexed = _read_index(source, index)
    except CorruptError as error:
        return WeightFiles((whole,), notes=(f"{index} is not used: {error.what}",))
    if whole in indexed.shards:
        return indexed
    other = f"{index} names other files ({', '.join(indexed.shards[:2])} …): {whole} is loaded, as transformers does"
    return WeightFiles((whole,), notes=(other,))


def _beside(found: WeightFiles, stale: Iterable[WeightFiles]) -> WeightFiles:
    """Return files with a note on each index that was passed over, as none of its files is there."""
    notes = [
        f"{each.index} is not used: none of the {len(each.shards)} files that it names is there"
        for each in stale
    ]
    return replace(found, notes=(*notes, *found.notes)) if notes else found


def _set_beside(source: Source, names: Sequence[str]) -> WeightFiles | None:
    """Return the whole numbered set, or the one file, of another name than the index says; None without one."""
    try:
        return _unusual_names(source, [name for name in names if not name.endswith(_INDEX_SUFFIX)])
    except ShardloadError:
        return None


def _unusual_names(source: Source, names: Sequence[str]) -> WeightFiles:
    """Return weight files with other names if they are unambiguous: one index, one numbered set, or one file."""
    top = [name for name in names if "/" not in name]
    if any(name.endswith(_PART_OF_DISTRIBUTED) for name in top):
        return _distributed(source)
    others = [name for name in top if name.endswith(f"weight_map{_INDEX_SUFFIX}")]  # accelerate's
    for suffix in _WEIGHT_SUFFIXES:
        indexes = [name for name in top if name.endswith(suffix + _INDEX_SUFFIX)]
        if len(indexes) == 1:
            return _read_index(source, indexes[0])
        files = [name for name in top if name.endswith(suffix) and not _is_beside_weights(name)]
        if len(files) > 1 and len(others) == 1:
            return _read_index(source, others[0])
        if len(files) == 1 and not _NUMBERED.fullmatch(files[0]):
            return WeightFiles((files[0],))
        if files:
            return WeightFiles(_numbered_set(source, files))
    raise _no_checkpoint(source, names)


def _gguf(source: Source, names: Sequence[str], variant: str | None) -> WeightFiles | None:
    """Return the one GGUF file of a source, or the one whose name has the variant in it; None where there is none.

    A projector of images is another model. Raises UsageError for several.
    """
    files = [name for name in names if name.endswith(".gguf") and "/" not in name and "mmproj" not in name]
    sets = _named(dict.fromkeys(map(parts_of, files)), variant)
    if len(sets) < 2:
        return WeightFiles(sets[0]) if sets else None
    kinds = [
        re.split(r"[-.]", parts[0].removesuffix(".gguf").partition("-00001-of-")[0])[-1] for parts in sets
    ]
    kind = next((kind for kind in kinds if len(_named(sets, kind)) == 1), None)
    cure: str = "pass the file you mean"
    raise UsageError(
        f"{source.label} holds several GGUF files",
        where=", ".join(parts[0] for parts in sets[:8]),
        cure=Wording("{0}, or a part of its name: {variant}", cure, variant=kind) if kind else cure,
    )


def _named(sets: Iterable[tuple[str, ...]], variant: str | None) -> list[tuple[str, ...]]:
    """Return the sets of files with a variant in their name, as a whole word."""
    word = re.compile(rf"(^|[-._]){re.escape(variant or '')}(?=[-.])", re.IGNORECASE)
    return [parts for parts in sets if variant is None or word.search(parts[0])]


def _is_beside_weights(name: str) -> bool:
    return name.startswith(NOT_WEIGHTS) or name.endswith(_OPTIMIZER)


def _distributed(source: Source) -> WeightFiles:
    """Return a distributed checkpoint of torch; its list names the shards. A file of it that was named is all of it."""
    try:
        source.open(DISTRIBUTED)
    except NotFoundError as error:
        raise NotFoundError(
            f"{source.label} holds a distributed checkpoint without its list of tensors",
            where=f"{source.label}: the hidden file {DISTRIBUTED} is not there",
            cure=f"copy {DISTRIBUTED} too; where it was never written the save did not end: use an earlier one",
            code="E-SHARDS",
        ) from error
    return WeightFiles((), DISTRIBUTED)


def _no_checkpoint(source: Source, names: Sequence[str]) -> NotFoundError:
    usual: str = Wording(
        "pass the folder, the repo or the file that holds the weights ({subfolder} for a folder inside a repo)",
        subfolder=...,
    )
    suffixes = (*_WEIGHT_SUFFIXES, _PART_OF_DISTRIBUTED)
    weights = [name.rpartition("/") for name in names if "/" in name and name.endswith(suffixes)]
    weights = [each for each in weights if not each[0].rpartition("/")[2].startswith(NOT_WEIGHTS)] or weights
    inner = [folder for folder, _, name in weights if not name.startswith((*NOT_WEIGHTS, "adapter_"))]
    inner = inner or [folder for folder, _, name in weights if name.startswith("adapter_")]
    if inner:
        from shardload.checkpoint.inner_folders import WEIGHTS, cure_by_folder

        usual = cure_by_folder(source, inner, WEIGHTS)
    else:
        from shardload.checkpoint.other_files import cure_by_names

        usual = cure_by_names(names) or usual
    top = sum("/" not in name for name in names)
    among = f"its {top} files" if top == len(names) else f"the {top} files outside its folders"
    return NotFoundError(
        f"{source.label} holds no checkpoint",
        where=f"no *{', *'.join(suffixes[:-1])} or *{suffixes[-1]} among {among}",
        cure=cure_of(source, usual),
    )


def _numbered_set(source: Source, files: list[str]) -> tuple[str, ...]:
    """Return `x-00001-of-00007` … as shards if the set is whole. Raises UsageError, NotFoundError."""
    matches = [_NUMBERED.fullmatch(name) for name in files]
    sets = {(m["stem"], m["total"], m["rest"]) for m in matches if m}
    if len(files) > 1 and all(map(_OF_RANK.search, files)):
        raise UnsupportedError(
            f"{source.label} holds what each rank had, and no list says how the parts make a whole",
            where=", ".join(files[:8]),
            cure=_of_ranks(files),
            code="E-FORMAT",
        )
    if len(sets) != 1 or not all(matches):
        raise UsageError(
            f"{source.label} holds several weight files and no index that orders them",
            where=", ".join(files[:8]),
            cure=_one_set(sets) if len(sets) > 1 and all(matches) else "pass the file you mean",
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
    weight_map = {key: value.removeprefix("./") for key, value in weight_map.items()}
    shards = tuple(dict.fromkeys(weight_map.values()))
    unlisted = _unlisted(source, shards)
    notes = [f"{one} is of the same set and not in {name}: it is loaded too" for one in unlisted]
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    size = total if isinstance(total, int) else None
    return WeightFiles(tuple(sorted((*shards, *unlisted))), name, weight_map, size, tuple(notes))


def _unlisted(source: Source, shards: Collection[str]) -> list[str]:
    """Return the files of a numbered set that its index leaves out, where they lie beside the others."""
    matches = [_NUMBERED.fullmatch(name) for name in shards]
    sets = {(m["stem"], m["total"], m["rest"]) for m in matches if m}
    if len(sets) != 1 or not all(matches) or len(shards) >= int(next(iter(sets))[1]):
        return []
    have = {m["number"] for m in matches if m}
    return [
        name
        for name in source.names()
        if (m := _NUMBERED.fullmatch(name))
        and (m["stem"], m["total"], m["rest"]) in sets
        and m["number"] not in have
    ]


def _faults_of(files: WeightFiles, entries: Mapping[str, str], lost: Sequence[str]) -> list[str]:
    """Return where an index and its shards disagree: `lost` are its keys that are not in the shard that it names.

    `entries` maps every key of the shards to the last one that has it.
    """
    absent = [key for key in lost if key not in entries]
    misplaced = [key for key in lost if key in entries]
    unlisted = [key for key in entries if key not in files.weight_map] if files.weight_map else []
    return [
        *(f"in the index, in no shard: {pattern}" for pattern in collapse(absent)),
        *(f"not in the shard that the index names: {pattern}" for pattern in collapse(misplaced)),
        # Alone it is no fault: it is loaded too.
        *(f"in a shard, not in the index: {key}" for key in collapse(unlisted)),
    ]


def disagreement(
    source: Source,
    files: WeightFiles,
    faults: Sequence[str],
    entries: Mapping[str, str],
    lost: Sequence[str],
    *,
    doubled: bool,
) -> CorruptError:
    """Return the error for shards that contradict each other or their index; `doubled`: a key is in two of them.

    `entries` and `lost` are as for `_faults_of`.
    """
    faults = [*faults, *_faults_of(files, entries, lost)]
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    where = f"{source.label}: {'; '.join(faults[:_SHOWN])}{more}"
    if files.index is None or not files.weight_map:
        return CorruptError(
            f"{len(faults)} tensors are stored in two shards, and no index says which of them counts",
            where=where,
            cure="fetch the index of these shards, or remove the files of another save",
            code="E-DOUBLE",
        )
    again = "fetch index and shards of one revision again"
    alone = source.is_local and not doubled and _set_beside(source, files.shards)
    return CorruptError(
        f"the shards and {files.index} disagree in {len(faults)} places",
        where=where,
        cure=Cures(again, f"delete {files.index}: its shards are a whole set without it") if alone else again,
        code="E-INDEX",
    )


def no_tensors(source: Source) -> CorruptError:
    """Return the error for weight files that hold no weights."""
    return CorruptError(
        "the checkpoint holds no tensor",
        where=source.label,
        cure="it was saved without its weights: use another one of the same training, or save again",
    )


def _of_ranks(files: Sequence[str]) -> str:
    if any(name.startswith("zero_pp_rank") for name in files):
        return "gather them with DeepSpeed's zero_to_fp32.py from the folder of the same checkpoint"
    if any(name.startswith("consolidated") for name in files):
        return (
            "join them with the converter of the program that wrote them, and load what that writes; no cure is known "
            "for the parts alone"
        )
    return (
        "save over ranks by torch.distributed.checkpoint.save (FSDP: SHARDED_STATE_DICT), or gather the state "
        "dict first (FULL_STATE_DICT): both are read"
    )


def _one_set(sets: Iterable[tuple[str, str, str]]) -> str:
    """Return the cure where the shards of several saves lie together: no file of them is a whole."""
    names = sorted(f"{stem}*-of-{total}{rest}" for stem, total, rest in sets)
    return f"keep the set that you mean, and move the others elsewhere: {', '.join(names)}"
