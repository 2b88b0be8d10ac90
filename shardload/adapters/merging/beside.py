"""What stands beside a base's weights and goes along with a merged checkpoint: settings, tokenizer, code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from shardload.checkpoint.checkpoint import Checkpoint

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".onnx_data",
    ".tflite", ".ot", ".npz", ".index.json",
)  # fmt: skip
_DTYPE_FIELDS = ("torch_dtype", "dtype")
_VOCABULARY_FIELDS = ("vocab_size", "padded_vocab_size")


def files_beside(
    checkpoint: Checkpoint,
    dtype: str | None,
    *,
    untied: bool,
    rows: tuple[int, int] | None,
    folder: str = "",
) -> dict[str, bytes | Path]:
    """Return the files of a base's repo that are no weights, by name.

    config.json is changed in what would no longer be true: its dtype where `dtype` is given, the tie of the
    embeddings when they are `untied`, the size of the vocabulary when its `rows` change from one to another; else
    it is the same bytes. `folder` is where in the repo the weights lie: only what is there, or below it, belongs to
    them; folders with weights of their own do not.
    """
    source = checkpoint.source
    below = [name for name in source.names() if name.startswith(folder)]
    # A folder with weights of its own is another model: an adapter, a training state, another format.
    others = {name.rpartition("/")[0] for name in below if name.endswith(_WEIGHTS)} - {folder.rstrip("/")}
    names = [
        name
        for name in below
        if not name.endswith(_WEIGHTS)
        and name.rpartition("/")[0] not in others
        and name != f"{folder}adapter_config.json"
    ]
    files: dict[str, bytes | Path] = {name[len(folder) :]: source.open(name).local_path() for name in names}
    if checkpoint.config is not None and "config.json" in files and (dtype or untied or rows):
        config = _changed(checkpoint.config, dtype, rows, untied=untied)
        files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    return files


def _changed(
    config: dict[str, Any], dtype: str | None, rows: tuple[int, int] | None, *, untied: bool
) -> dict[str, Any]:
    changed = dict(config)
    for field in _VOCABULARY_FIELDS if rows else ():
        if rows and changed.get(field) == rows[0]:
            changed[field] = rows[1]
    if dtype is not None:
        for field in _DTYPE_FIELDS:
            if field in changed:
                changed[field] = dtype
    if untied:
        changed["tie_word_embeddings"] = False
    return changed
