"""Random float16 weights of a plausible scale, made as fast as they can be written."""

from __future__ import annotations

import ctypes
import json
import zlib
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from shardload.cli.demo_repo.sizes import DemoSize

SEED = 20230625
_BLOCK = 4_194_301  # a prime, so that no row length divides it and rows of a matrix differ
_CODES = {torch.float16: "F16", torch.float32: "F32"}


def write_torch(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a shard as `torch.save` does."""
    torch.save(tensors, path)


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a shard of contiguous tensors as safetensors; the library's own writer needs NumPy."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        span = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the first tensor is aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))


class RandomWeights:
    """The weights of the demo model: equal names give equal values.

    All of them are cut out of one block of normal numbers, each tensor from its own offset: drawing 6.2
    billion numbers would take minutes.
    """

    def __init__(self, size: DemoSize) -> None:
        self._config = size.config
        self._shapes = size.shapes
        self._block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(SEED)).half()

    def make(self, name: str) -> torch.Tensor:
        """Return the float16 tensor called `name`."""
        shape = self._shapes[name]
        if name.endswith("inv_freq"):
            return _inverse_frequencies(2 * shape[0])
        if name.endswith("layernorm.weight"):
            return self.normal(name, shape, scale=0.1).add_(1)
        return self.normal(name, shape, scale=self._scale(name, shape))

    def normal(self, name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        """Return float16 values of standard deviation `scale`; equal names give equal values."""
        tensor = torch.empty(shape, dtype=torch.float16)
        flat = tensor.view(-1)
        done, start = 0, zlib.crc32(name.encode()) % _BLOCK
        while done < flat.numel():
            count = min(flat.numel() - done, _BLOCK - start)
            torch.mul(self._block[start : start + count], scale, out=flat[done : done + count])
            done, start = done + count, 0
        return tensor

    def _scale(self, name: str, shape: tuple[int, ...]) -> float:
        if name.endswith(("word_embeddings.weight", ".bias")):
            return 0.3
        scale = 1 / sqrt(shape[-1])
        if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
            # Two of these are added to the residual stream in each layer: they must stay small beside it.
            return scale / sqrt(2 * self._config["num_layers"])
        return scale


def _inverse_frequencies(width: int) -> torch.Tensor:
    """Return what the model's constructor computes for `width` rotating channels, in float16."""
    exponents = torch.arange(0, width, 2).to(torch.float16) / width
    return 1.0 / (10000**exponents)


def adapter_tensors(size: DemoSize, weights: RandomWeights, rank: int) -> dict[str, torch.Tensor]:
    """Return a LoRA on every fused attention projection, float32, under PEFT's names.

    A has the scale of PEFT's initial A; B, which starts at zero, is as small as training leaves it.
    """
    hidden = size.config["hidden_size"]
    tensors = {}
    for name, shape in size.shapes.items():
        if name.endswith("query_key_value.weight"):
            module = "base_model.model." + name.removesuffix(".weight")
            down, up = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
            tensors[down] = weights.normal(down, (rank, hidden), 1 / sqrt(3 * hidden)).float()
            tensors[up] = weights.normal(up, (shape[0], rank), 0.02).float()
    return tensors


def nbytes_of(size: DemoSize, names: list[str]) -> int:
    """Return the bytes of the named tensors."""
    return sum(2 * prod(size.shapes[name]) for name in names)
