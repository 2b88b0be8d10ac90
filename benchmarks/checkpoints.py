"""Writes the checkpoints to load: real shapes, random weights, and the values to compare with after a load."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.verify import expected_path, sample
from shardload.cli.demo_repo import SIZES, DemoSize, write_demo_repo

if TYPE_CHECKING:
    from pathlib import Path

Shapes = dict[str, tuple[int, ...]]

SUFFIXES = {"safetensors": "model", "bin": "pytorch_model"}
_BLOCK = 4_194_301  # a prime: no row length divides it, so the rows of a matrix differ


@dataclass(frozen=True)
class Spec:
    """The content of a checkpoint: its shapes, its dtype and its number of shards.

    `kind` is "llama", "chatglm" (a repo with remote code, written by shardload's demo) or "many" (small Linears).
    """

    kind: str
    shards: int
    config: dict[str, Any]
    stored: str = "bfloat16"

    @property
    def shapes(self) -> Shapes:
        return {"llama": _llama, "chatglm": _chatglm, "many": _many}[self.kind](self.config)

    @property
    def dtype(self) -> str:
        return "float16" if self.kind == "chatglm" else self.stored

    @property
    def nbytes(self) -> int:
        return self.itemsize * sum(prod(shape) for shape in self.shapes.values())

    @property
    def itemsize(self) -> int:
        return getattr(torch, self.dtype).itemsize

    def describe(self) -> dict[str, Any]:
        return {**asdict(self), "dtype": self.dtype, "tensors": len(self.shapes), "nbytes": self.nbytes}


def llama(hidden: int, ffn: int, layers: int, vocab: int, shards: int = 7, stored: str = "bfloat16") -> Spec:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": stored,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128 or 1,
        "num_key_value_heads": hidden // 128 or 1,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
    }
    return Spec("llama", shards, config, stored)


def chatglm(hidden: int, ffn: int, layers: int, vocab: int, shards: int = 7) -> Spec:
    config = {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": hidden // 128 or 1,
        "kv_channels": 128,
        "padded_vocab_size": vocab,
        "seq_length": 2048,
    }
    return Spec("chatglm", shards, config)


def many(layers: int, per_layer: int, width: int = 16, shards: int = 60) -> Spec:
    config = {"model_type": "many-linears", "layers": layers, "per_layer": per_layer, "width": width}
    return Spec("many", shards, config)


def _llama(config: dict[str, Any]) -> Shapes:
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[layer + "mlp.down_proj.weight"] = (hidden, ffn)
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def _many(config: dict[str, Any]) -> Shapes:
    width = config["width"]
    return {
        f"layers.{layer}.{number}.weight": (width, width)
        for layer in range(config["layers"])
        for number in range(config["per_layer"])
    }


def _chatglm(config: dict[str, Any]) -> Shapes:
    return DemoSize("benchmark", config, shard_limit=0).shapes


def write(spec: Spec, suffix: str, folder: Path) -> None:
    """Write the checkpoint in one format ("safetensors" or "bin") into `folder`, unless a complete one exists there.

    Every tensor of a `.bin` shard has its own storage. The values that a loaded model must hold are written to
    `verify.expected_path(folder)`.
    """
    if expected_path(folder).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if spec.kind == "chatglm":
        _write_chatglm(spec, suffix, folder)
    else:
        _write_plain(spec, suffix, folder)
    sums: dict[str, float] = {}
    for path in sorted(folder.glob(f"*.{suffix}")):
        stored = load_file(path) if suffix == "safetensors" else torch.load(path, mmap=True)
        # ChatGLM2 stores a table that the class computes: it is no parameter.
        sums |= {name: sample(value) for name, value in stored.items() if not name.endswith("inv_freq")}
        _flush(path)
    expected_path(folder).write_text(json.dumps(sums))


def _write_plain(spec: Spec, suffix: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(spec.config, indent=2))
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    # All values are exact in bfloat16 and in float16, so a cast down does not change the sums that are compared.
    block = block.to(torch.bfloat16).to(torch.float16).to(getattr(torch, spec.dtype))
    names, shapes = _cut(spec), spec.shapes
    weight_map: dict[str, str] = {}
    for number, part in enumerate(names, start=1):
        tensors = {name: _values(block, name, shapes[name]) for name in part}
        path = folder / f"{SUFFIXES[suffix]}-{number:05d}-of-{len(names):05d}.{suffix}"
        if suffix == "safetensors":
            save_file(tensors, path, {"format": "pt"})
        else:
            torch.save(tensors, path)
        weight_map |= dict.fromkeys(part, path.name)
    index = {"metadata": {"total_size": spec.nbytes}, "weight_map": weight_map}
    (folder / f"{SUFFIXES[suffix]}.{suffix}.index.json").write_text(json.dumps(index))


def _cut(spec: Spec) -> list[list[str]]:
    """Divide the names, in order, into `spec.shards` shards of about the same size."""
    shards: list[list[str]] = [[] for _ in range(spec.shards)]
    done, total = 0, spec.nbytes
    for name, shape in spec.shapes.items():
        nbytes = spec.itemsize * prod(shape)
        middle = (done + nbytes / 2) / total
        shards[min(int(middle * spec.shards), spec.shards - 1)].append(name)
        done += nbytes
    return [names for names in shards if names]


def _values(block: torch.Tensor, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor cut from one block of normal numbers, at its own offset: drawing all would take minutes."""
    tensor = torch.empty(prod(shape), dtype=block.dtype)
    done, start = 0, zlib.crc32(name.encode()) % _BLOCK
    while done < tensor.numel():
        count = min(tensor.numel() - done, _BLOCK - start)
        tensor[done : done + count] = block[start : start + count]
        done, start = done + count, 0
    return tensor.view(shape)


def _write_chatglm(spec: Spec, suffix: str, folder: Path) -> None:
    name = f"benchmark-{folder.name}"
    # The demo's writer looks its sizes up by name; this size is added only while the repo is written.
    SIZES[name] = DemoSize(name, spec.config, shard_limit=_limit(spec))
    try:
        write_demo_repo(folder, name, formats=[suffix])
    finally:
        del SIZES[name]


def _limit(spec: Spec) -> int:
    """Return a shard size in bytes that cuts the checkpoint into `spec.shards` shards."""
    limit = spec.nbytes // spec.shards
    while len(DemoSize("", spec.config, limit).shards) > spec.shards:
        limit += max(limit // 200, 1)
    return limit


def _flush(path: Path) -> None:
    """Flush a file to the disk, so that no measurement runs while it is written. It stays in the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
