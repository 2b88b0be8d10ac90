"""save: a model as safetensors shards with an index, written atomically and without a copy of the weights."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

from shardload.atomic_file import no_space_said, require_space, sync_folder
from shardload.companions import companions
from shardload.errors import UnsupportedError, UsageError
from shardload.keymap import KeyMap
from shardload.shard import CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_INDEX = "model.safetensors.index.json"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_WEIGHTS = ("*.safetensors", "*.safetensors.index*.json")

base_states: list[Callable[[nn.Module, dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = []
"""Those who add tensors to models put a function here that leaves them out of a state dict."""


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: str | int = "5GB",
    key_map: KeyMap | Mapping[str, str | None] | None = None,
) -> list[Path]:
    """Write a model as safetensors shards, index, settings and its repo's code; return the files written.

    Settings are config.json and generation_config.json, where the model has them; the code is what `auto_map` needs,
    so that `from_pretrained(folder, trust_remote_code=True)` gives the model again. Adapters are left out, with a
    warning that names them. The key map is the one that the model was loaded through: names are written through its
    inverse. Tied parameters are written once. Files appear in `folder` only when all are complete. `max_shard_size`
    is bytes or a text such as "5GB" (powers of ten) or "5GiB". Raises UsageError, UnsupportedError, NoSpaceError.
    """
    if not hasattr(model, "state_dict"):
        raise UsageError(f"save takes a model, not a {type(model).__name__}")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file", cure="pass a folder to write into")
    tensors = _named_tensors(model, KeyMap.of(key_map))
    shards = _split(tensors, _parse_size(max_shard_size))
    beside = companions(model)
    _refuse_other_code(target, beside)
    target.mkdir(parents=True, exist_ok=True)
    _refuse_other_weights(target, len(shards))
    require_space(target, sum(_nbytes(tensor) for tensor in tensors.values()))
    with no_space_said(target), tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as staging:
        names = _write_all(Path(staging), shards, beside)
        _move_in(Path(staging), target, names)
    return [target / name for name in names]


def _move_in(staging: Path, target: Path, names: list[str]) -> None:
    """Move new files into the folder; where it held shards of the same names, whole or not at all.

    A new shard beside an old one would be a checkpoint that nothing tells from a good one. So the old ones are
    moved out first, the index before all: whoever dies in between leaves a checkpoint with missing shards.
    """
    kept = staging / "replaced"
    kept.mkdir()
    for name in names:
        for folder in (target, kept):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    moved_out: list[str] = []
    moved_in: list[str] = []
    try:
        # One weight file and what stands beside it are replaced in one step each.
        for name in reversed(names) if _INDEX in names else ():
            if (target / name).exists():
                (target / name).replace(kept / name)
                moved_out.append(name)
        for name in names:
            (staging / name).replace(target / name)
            moved_in.append(name)
        sync_folder(target)
    except BaseException:
        if _INDEX in names:
            for name in moved_in:
                (target / name).unlink()
        for name in moved_out:
            (kept / name).replace(target / name)
        raise


def _named_tensors(model: nn.Module, key_map: KeyMap) -> dict[str, torch.Tensor]:
    inverse = key_map.invert()
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    for base_state in base_states:
        state = base_state(model, state)
    seen: set[int] = set()
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if not hasattr(value, "untyped_storage"):
            raise UnsupportedError(
                f"{key} is no tensor but {type(value).__name__}", cure="safetensors holds tensors only"
            )
        if value.is_meta:
            raise UsageError(f"{key} is on meta: there is nothing to save", cure="load the model first")
        if value.dtype not in CODES or value.is_sparse or str(value.layout) != "torch.strided":
            raise UnsupportedError(f"safetensors has no place for {key}: {value.dtype}, {value.layout}")
        if id(value) in seen:
            continue  # a tie: the loader gives the one copy to every name
        seen.add(id(value))
        stored = inverse.apply(key)
        if stored is None or stored in found or key_map.apply(stored) != key:
            raise UsageError(
                f"the key map does not lead back to {key!r}", where=f"its inverse gives {stored!r}"
            )
        found[stored] = value.detach()
    return found


def _split(tensors: Mapping[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        size = _nbytes(tensor)
        if size > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= size
    return shards


def _write_all(staging: Path, shards: list[dict[str, torch.Tensor]], beside: dict[str, bytes]) -> list[str]:
    """Write everything into the staging folder; return the names in the order in which they may appear."""
    names = _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(staging / name, shard)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(_nbytes(tensor) for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        names.append(_INDEX)
        _write_bytes(staging / names[-1], json.dumps(index, indent=2).encode())
    for name, content in beside.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        _write_bytes(staging / name, content)
    return [*names, *beside]


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def write_safetensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file and flush it to the disk.

    Tensors that are contiguous on the CPU are written straight from their memory; others are copied first. The
    library's own helper for torch needs NumPy; its core, which is used here, does not.
    """
    packed = {name: _packed(tensor) for name, tensor in tensors.items()}
    specs = {
        name: safetensors.TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=list(tensor.shape),
            data_ptr=tensor.data_ptr(),
            data_len=_nbytes(tensor),
        )
        for name, tensor in packed.items()
    }
    try:
        safetensors.serialize_file(specs, path, {"format": "pt", **(metadata or {})})
    except safetensors.SafetensorError as error:
        if number := _OS_ERROR.search(str(error)):  # the library tells of a full disk in words alone
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    # A conjugate or negative view says so in a flag beside its bytes.
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _parse_size(size: str | int) -> int:
    if isinstance(size, int):
        limit = size
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
        unit = match[2].upper() if match else None
        if match is None or unit not in _UNITS:
            raise UsageError(
                f"max_shard_size={size!r} is no size", cure='pass bytes, or a text such as "5GB"'
            )
        limit = int(float(match[1]) * _UNITS[unit])
    if limit <= 0:
        raise UsageError(f"max_shard_size={size!r} holds no tensor")
    return limit


def _refuse_other_weights(folder: Path, shards: int) -> None:
    """Raise UsageError for weights beside which the new ones would not be read, or would be read together."""
    new = {*_shard_names(shards), *([_INDEX] if shards > 1 else [])}
    others = sorted(
        path.name for pattern in _WEIGHTS for path in folder.glob(pattern) if path.name not in new
    )
    if others:
        raise UsageError(
            "the folder holds weights that this save would not replace",
            where=f"{folder}: {', '.join(others[:8])}",
            cure="save into an empty folder, or remove them first",
        )


def _refuse_other_code(folder: Path, files: Mapping[str, bytes]) -> None:
    """Raise UsageError for code in the folder that differs: somebody may have edited it."""
    for name, content in files.items():
        path = folder / name
        if name.endswith(".py") and path.exists() and path.read_bytes() != content:
            raise UsageError(
                "the folder holds code that differs from what made this model",
                where=str(path),
                cure="save into another folder, or remove the file first",
            )


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
