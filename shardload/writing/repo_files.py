"""The files beside written weights: settings, tokenizer and code, of a model or of a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shardload._system.warn import warn_caller
from shardload.checkpoint.plain_weights import QUANTISER_FILES
from shardload.checkpoint.sources.names import is_hidden
from shardload.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from shardload.checkpoint.checkpoint import Checkpoint

Exporter = Callable[["nn.Module", Mapping[str, Any]], tuple[dict[str, bytes], dict[str, Any]]]
"""Takes a model and its config's `auto_map`; returns code files by name, and the entries that they serve."""

# These say where a config was loaded from: not a property of the model, and maybe a path on this machine.
_OF_THE_LOAD = frozenset({"_name_or_path", "_commit_hash", "name_or_path"})


# transformers 4.46 to 4.55 note in a config, and in those of its parts, that attention was chosen: a model that reads
# that chooses none, and computes without SDPA.
_CHOSEN = "_attn_implementation_autoset"

# Files with weights, in any format, and lists of such files.
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".onnx_data",
    ".npz", ".ot", ".pkl", ".tflite", ".distcp", ".index.json", "SHA256SUMS",
)  # fmt: skip


def files_beside(checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> dict[str, bytes | Path]:
    """Return the files of a checkpoint's repo that hold no weights, by name, with `config` as config.json.

    An unchanged config keeps its bytes; a GGUF file's own is written. Subfolders with weights are left out: each is
    another model, an adapter, a training state or another format.
    """
    source = checkpoint.source
    names = [name for name in source.names() if not is_hidden(name)]
    others = {name.rpartition("/")[0] for name in names if name.endswith(_WEIGHTS)} - {""}
    files: dict[str, bytes | Path] = {
        name: source.open(name).local_path()
        for name in names
        if not name.endswith((*_WEIGHTS, "adapter_config.json")) and name.rpartition("/")[0] not in others
    }
    if checkpoint.packing:  # what said how the weights were packed
        files = {name: file for name, file in files.items() if name not in QUANTISER_FILES}
    made = bool(config) and checkpoint.format == "gguf"
    if made or ("config.json" in files and (config != checkpoint.config or checkpoint.packing)):
        files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    return files


def with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a config with this dtype wherever it, or a config inside it, names one."""
    return {
        key: name
        if key in {"torch_dtype", "dtype"} and isinstance(value, (str, type(None)))
        else with_dtype(value, name)
        if isinstance(value, dict) and key.endswith("_config") and key != "quantization_config"
        else value
        for key, value in config.items()
    }


def is_untied(model: nn.Module, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether the head of a model whose config ties it to the embedding has values of its own, after a merge, say."""
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return False
    ends = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    try:
        table, head = (getattr(end(), "weight", None) if callable(end) else None for end in ends)
    except NotImplementedError:  # a class without a vocabulary
        return False
    written = {id(tensor) for tensor in state.values()}
    if table is None or head is None or table is head or not {id(table), id(head)} <= written:
        return False
    return bool(table.shape != head.shape or (table != head).any())


def repo_files(
    model: nn.Module, exported: Exporter, *, untied: bool = False, architecture: str | None = None
) -> dict[str, bytes]:
    """Return the code and the settings to write beside a model's weights, by file name.

    `untied`: the config has to say that the head is not tied to the embedding. `architecture` is the class that it has
    to name, whatever class it was read for. `exported` is called where the config has an `auto_map`. The entries that
    it returns are written with their code; without any, `auto_map` is left out and a warning says so. Raises UsageError
    for settings that are no data.
    """
    files: dict[str, bytes] = {}
    generation = _settings(getattr(model, "generation_config", None))
    if generation is not None:
        files["generation_config.json"] = _as_json(generation, "generation_config")
    config = _settings(getattr(model, "config", None))
    if config is None:
        return files
    if untied:
        config = _untied(config)
    if "architectures" in config and (architecture or not config["architectures"]):
        from shardload.model.wrapper_tensors import class_of

        config["architectures"] = [architecture or class_of(model).__name__]
    auto_map = config.pop("auto_map", None)
    if isinstance(auto_map, Mapping) and auto_map:
        code, kept = _export(model, auto_map, exported)
        files |= code
        if kept:
            config["auto_map"] = kept
    files["config.json"] = _as_json(config, "config")
    return files


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        name: _untied(value)
        for name, value in config.items()
        if name in {"text_config", "decoder"} and isinstance(value, dict)
    }
    said = {"tie_word_embeddings": False} if config.get("tie_word_embeddings") else {}
    return {**config, **inner, **said}


def _export(
    model: nn.Module, auto_map: Mapping[str, Any], exported: Exporter
) -> tuple[dict[str, bytes], dict[str, Any]]:
    files, kept = exported(model, auto_map)
    if kept:
        return files, kept
    from shardload.model.wrapper_tensors import class_of

    warn_caller(
        f"auto_map is left out of config.json: {class_of(model).__name__} does not come from the code that it names; "
        "pass model_class to load the saved model",
    )
    return {}, {}


def _settings(config: Any) -> dict[str, Any] | None:
    to_dict = getattr(config, "to_dict", None)
    content = to_dict() if callable(to_dict) else config
    if not isinstance(content, Mapping):
        return None
    return {name: value for name, value in content.items() if name not in _OF_THE_LOAD}


def _as_json(settings: Mapping[Any, Any], what: str) -> bytes:
    options: dict[str, Any] = {"indent": 2, "default": _plain, "allow_nan": False}
    try:
        settings = _with_named_floats(settings)
        try:
            text = json.dumps(settings, sort_keys=True, **options)
        except TypeError:  # keys of several kinds have no order
            text = json.dumps(settings, **options)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the model's {what} can't be written as JSON: {error}",
            cure=f"keep only plain data in model.{what}",
        ) from error
    return text.encode()


def _with_named_floats(value: Any) -> Any:
    """Return JSON data in which infinities and NaN are written as transformers writes them: JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {key: _with_named_floats(each) for key, each in value.items() if key != _CHOSEN}
    if isinstance(value, (list, tuple)):
        return [_with_named_floats(each) for each in value]
    return value


def _plain(value: Any) -> Any:
    if type(value).__module__ == "torch" and type(value).__name__ in {"dtype", "device"}:
        return str(value).removeprefix("torch.")
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict) and not isinstance(value, type):
        return _with_named_floats(to_dict())
    raise TypeError(f"{value!r} is a {type(value).__name__}")
