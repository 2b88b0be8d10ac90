"""save: a model as safetensors shards with an index, written atomically and without a copy of the weights."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch

from shardload._system.atomic_file import no_space_said, require_space, sync_folder
from shardload._system.byte_size import parse_size
from shardload.checkpoint.shard import CODES
from shardload.errors import UnsupportedError, UsageError
from shardload.keymap import KeyMap
from shardload.keymap.assembly import assemble, view_of
from shardload.keywords import entry_point
from shardload.tensor_ref import Span, TensorRef
from shardload.writing.repo_files import companions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from shardload.keymap import Derived, Names

_INDEX = "model.safetensors.index.json"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_WEIGHTS = ("*.safetensors", "*.safetensors.index*.json")

base_states: list[Callable[[nn.Module, dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = []
"""Those who add tensors to models put a function here that leaves them out of a state dict."""


@entry_point
def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: str | int = "5GB",
    key_map: KeyMap | Names | str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write a model as safetensors shards, index, settings and its repo's code; return the files written.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> files = shardload.save(model, "out", max_shard_size="40kB")
        >>> [file.name for file in files][-1], len(files)
        ('model.safetensors.index.json', 3)
        >>> len(shardload.open_checkpoint("out").tensors)
        6

    Settings are config.json and generation_config.json, where the model has them; the code is what `auto_map`
    needs, so that `from_pretrained(folder, trust_remote_code=True)` gives the model again. Adapters are left out,
    with a warning that names them. The key map is the one that the model was loaded through: tensors are written
    through its inverse, a shard's joined tensors made while that shard is written. Tied parameters are written once.
    Files appear in `folder` only when all are complete. `max_shard_size` is bytes or a text such as "5GB" (powers
    of ten) or "5GiB". Raises UsageError, UnsupportedError, NoSpaceError.
    """
    if not hasattr(model, "state_dict"):
        raise UsageError(f"save takes a model, not a {type(model).__name__}")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file", cure="pass a folder to write into")
    state = _State(model)
    tensors = _stored_tensors(state, KeyMap.of(key_map))
    shards = _split(tensors, parse_size(max_shard_size))
    beside = companions(model)
    _refuse_other_code(target, beside)
    target.mkdir(parents=True, exist_ok=True)
    _refuse_other_weights(target, len(shards))
    require_space(target, sum(tensor.nbytes for tensor in tensors.values()))
    with no_space_said(target), tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as staging:
        names = _write_all(Path(staging), shards, state, beside)
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


class _State:
    """A model's state dict, and headers of it as if each tensor were stored whole; tied names share one header."""

    def __init__(self, model: nn.Module) -> None:
        state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        for base_state in base_states:
            state = base_state(model, state)
        self.refs: dict[str, TensorRef] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        first: dict[int, TensorRef] = {}
        for key, value in state.items():
            _refuse_unwritable(key, value)
            if id(value) not in first:
                span = Span(0, _nbytes(value))
                first[id(value)] = TensorRef(key, CODES[value.dtype], tuple(value.shape), "", span)
                self._tensors[key] = value.detach()
            self.refs[key] = first[id(value)]

    def read(self, ref: TensorRef) -> torch.Tensor:
        """Return the tensor, or the view of it, that a header stands for."""
        return view_of(self._tensors[ref.name], self.refs[ref.name], ref)


def _refuse_unwritable(key: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise UnsupportedError(
            f"{key} is no tensor but {type(value).__name__}", cure="safetensors holds tensors only"
        )
    if value.is_meta:
        raise UsageError(f"{key} is on meta: there is nothing to save", cure="load the model first")
    if value.dtype not in CODES or value.is_sparse or str(value.layout) != "torch.strided":
        raise UnsupportedError(f"safetensors has no place for {key}: {value.dtype}, {value.layout}")


def _stored_tensors(state: _State, key_map: KeyMap) -> dict[str, Derived]:
    """Return what is written, by the checkpoint's names; a tie once, as the loader gives one copy to every name."""
    made: Mapping[str, Derived] = state.refs
    if key_map.rules:
        made = key_map.invert().map_headers(state.refs).tensors
        _refuse_loss(state, key_map.map_headers(made).tensors)
    once: dict[Derived, str] = {}
    for name, tensor in made.items():
        once.setdefault(tensor, name)
    return {name: tensor for tensor, name in once.items()}


def _refuse_loss(state: _State, back: Mapping[str, Derived]) -> None:
    """Raise UsageError unless a map makes of what would be written the model's tensors again, padding included."""
    lost = []
    for key, ref in state.refs.items():
        found = back.get(key)
        if found == ref:
            continue
        padded = found is not None and (found.shape, found.dtype) == (ref.shape, ref.dtype)
        if not padded or not _same(assemble(found, state.read), state.read(ref)):  # type: ignore[arg-type]
            lost.append(key)
    if lost:
        raise UsageError(
            f"the key map does not lead back to {lost[0]!r}",
            where=f"{len(lost)} of the model's {len(state.refs)} tensors would be lost: {', '.join(lost[:5])}",
            cure="use the map that the model was loaded through, or save under the model's own names",
        )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other.cpu()) | (one.isnan() & other.cpu().isnan())).all())


def _split(tensors: Mapping[str, Derived], limit: int) -> list[dict[str, Derived]]:
    shards: list[dict[str, Derived]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        size = tensor.nbytes
        if size > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= size
    return shards


def _write_all(
    staging: Path, shards: list[dict[str, Derived]], state: _State, beside: dict[str, bytes]
) -> list[str]:
    """Write everything into the staging folder; return the names in the order in which they may appear."""
    names = _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(
            staging / name, {key: assemble(tensor, state.read) for key, tensor in shard.items()}
        )
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
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
