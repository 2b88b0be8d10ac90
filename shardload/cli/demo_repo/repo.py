"""write_demo_repo: writes the demo repo into a folder, whole or not at all, unless it is there already."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardload.cli.demo_repo.sizes import SIZES, DemoSize
from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Progress = Callable[[str, int, int], None]

CODE = Path(__file__).parent / "chatglm2"
CODE_FILES = ("configuration_chatglm.py", "modeling_chatglm.py")
MARKER = ".shardload-demo.json"
LORA_RANK = 8
FORMATS = {"bin": "pytorch_model", "safetensors": "model"}
"""The first word of each format's files; the format's name is their suffix."""
_WRITER_VERSION = 1
_SPARE_BYTES = 64 << 20


def default_folder(size: str = "small") -> Path:
    """Return the demo's folder in $SHARDLOAD_CACHE, $XDG_CACHE_HOME/shardload or ~/.cache/shardload."""
    if own := os.environ.get("SHARDLOAD_CACHE"):
        base = Path(own)
    elif shared := os.environ.get("XDG_CACHE_HOME"):
        base = Path(shared) / "shardload"
    else:
        base = Path.home() / ".cache" / "shardload"
    return base / f"demo-chatglm2-{size}"


def write_demo_repo(
    folder: str | os.PathLike[str] | None = None,
    size: str = "small",
    *,
    formats: Iterable[str] | None = None,
    announce: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the demo repo into `folder`, unless it holds a complete one of this version; return the folder.

    It holds `config.json` with `auto_map`, the model's own code, seven shards and an index for each of
    `formats` ("bin" and "safetensors" by default; for "6b", 12.5 GB a format, only "bin"), and a LoRA in
    `adapter/`.
    The weights are random and the same on every call. `announce` hears what is about to be written;
    `progress(file, done, total)` is called before each shard, in bytes, and once at the end.

    Raises UsageError for an unknown size or format, for a folder that holds something else, and when the disk
    lacks the room.
    """
    if size not in SIZES:
        raise UsageError(
            f"there is no demo of size {size!r}", where="size", cure=f"one of: {', '.join(SIZES)}"
        )
    wanted = _checked_formats(formats, size)
    target = default_folder(size) if folder is None else Path(folder).absolute()
    if is_complete(target, size, wanted):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_writer(target.parent):
        if is_complete(target, size, wanted):  # another process wrote it meanwhile
            return target
        _refuse_foreign(target)
        _require_room(target, SIZES[size], wanted, announce)
        with _replacing(target) as partial:
            _write_all(partial, SIZES[size], wanted, progress)
    return target


def is_complete(folder: Path, size: str, formats: Iterable[str]) -> bool:
    """Whether `folder` holds this version's demo repo with every file at its full length."""
    marker = _read_marker(folder)
    if (
        marker is None
        or marker.get("version") != _version(SIZES[size])
        or not {*formats} <= {*marker["formats"]}
    ):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == nbytes
        for name, nbytes in marker["files"].items()
    )


def shard_names(size: DemoSize, kind: str) -> list[str]:
    """Return the file names of the shards of one format."""
    count = len(size.shards)
    return [f"{FORMATS[kind]}-{number:05d}-of-{count:05d}.{kind}" for number in range(1, count + 1)]


def _checked_formats(formats: Iterable[str] | None, size: str) -> tuple[str, ...]:
    if formats is None:
        return ("bin",) if size == "6b" else tuple(FORMATS)
    wanted = tuple(formats)
    for kind in wanted:
        if kind not in FORMATS:
            known = ", ".join(FORMATS)
            raise UsageError(f"the demo has no format {kind!r}", where="formats", cure=f"one of: {known}")
    return wanted


def _version(size: DemoSize) -> str:
    """Return a hash of the inputs of the repo: sizes, code files, and the version of this writer."""
    parts = [str(_WRITER_VERSION), json.dumps(size.config, sort_keys=True), str(size.shard_limit)]
    parts += [(CODE / name).read_text(encoding="utf-8") for name in CODE_FILES]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and {"version", "formats", "files"} <= {*marker} else None


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and ((folder / MARKER).exists() or not any(folder.iterdir()))):
        return
    raise UsageError(
        "this folder holds something else, and the demo repo replaces what it finds",
        where=str(folder),
        cure="name a new or empty folder",
    )


def _require_room(
    target: Path, size: DemoSize, formats: tuple[str, ...], announce: Callable[[str], None] | None
) -> None:
    need = size.nbytes * len(formats)
    free = shutil.disk_usage(target.parent).free
    if announce:
        announce(f"writing {need / 1e9:.2f} GB into {target} ({free / 1e9:.1f} GB free)")
    if free < need + _SPARE_BYTES:
        raise UsageError(
            f"the demo repo needs {need / 1e9:.2f} GB of disk and {free / 1e9:.2f} GB are free",
            where=str(target),
            cure="free some space, or name a folder on another disk",
        )


@contextlib.contextmanager
def _only_writer(parent: Path) -> Iterator[None]:
    """Let one process at a time write in `parent`; Windows has no `flock`, so there is no lock."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `target` at the end, or is removed after an error."""
    prefix = f".{target.name}.partial-"
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)  # left by a killed process: living ones hold the lock
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_all(folder: Path, size: DemoSize, formats: tuple[str, ...], progress: Progress | None) -> None:
    # torch is needed to write weights, not to find the folder.
    from shardload.cli.demo_repo.weights import RandomWeights, adapter_tensors, write_safetensors

    _write_json(folder / "config.json", size.config)
    _write_json(folder / "generation_config.json", _GENERATION)
    for name in CODE_FILES:
        shutil.copyfile(CODE / name, folder / name)
    weights = RandomWeights(size)
    _write_shards(folder, size, formats, weights, progress)
    (folder / "adapter").mkdir()
    _write_json(folder / "adapter" / "adapter_config.json", _lora_config(size))
    write_safetensors(
        folder / "adapter" / "adapter_model.safetensors", adapter_tensors(size, weights, LORA_RANK)
    )
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    _write_json(folder / MARKER, {"version": _version(size), "formats": list(formats), "files": files})


def _write_shards(
    folder: Path, size: DemoSize, formats: tuple[str, ...], weights: Any, progress: Progress | None
) -> None:
    """Write the shards of every format; one shard's tensors are in memory at a time."""
    from shardload.cli.demo_repo.weights import nbytes_of, write_safetensors, write_torch

    writers = {"bin": write_torch, "safetensors": write_safetensors}
    total, done = size.nbytes * len(formats), 0
    for number, names in enumerate(size.shards):
        tensors = {name: weights.make(name) for name in names}
        for kind in formats:
            path = folder / shard_names(size, kind)[number]
            if progress:
                progress(path.name, done, total)
            writers[kind](path, tensors)
            done += nbytes_of(size, names)
        tensors.clear()
    if progress:
        progress("", total, total)
    for kind in formats:
        weight_map = {
            name: shard
            for shard, names in zip(shard_names(size, kind), size.shards, strict=True)
            for name in names
        }
        index = {"metadata": {"total_size": size.nbytes}, "weight_map": weight_map}
        _write_json(folder / f"{FORMATS[kind]}.{kind}.index.json", index)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


_GENERATION: dict[str, Any] = {
    "_from_model_config": True,
    "do_sample": True,
    "eos_token_id": 2,
    "max_length": 2048,
    "pad_token_id": 0,
    "temperature": 0.8,
    "top_p": 0.8,
    "transformers_version": "4.27.1",
}


def _lora_config(size: DemoSize) -> dict[str, Any]:
    return {
        "base_model_name_or_path": size.config["_name_or_path"],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": LORA_RANK,
        "revision": None,
        "target_modules": ["query_key_value"],
        "task_type": "CAUSAL_LM",
    }
