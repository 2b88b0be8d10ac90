"""Small models and checkpoints for tests. Files are written by torch and by the safetensors library, not by us."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import safetensors
import torch
from torch import nn

from shardload.model.shell import Shell, build_shell


class Block(nn.Module):
    """A block with the usual parts: linears, a norm, a computed buffer and a plain tensor attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)
        self.slopes = torch.arange(width, dtype=torch.float32) / width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x)))) * self.scale + self.slopes


class Net(nn.Module):
    """Embedding, blocks, batch norm (a stored buffer), head."""

    def __init__(self, width: int = 8, layers: int = 3, vocab: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.stats = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.stats(x.transpose(1, 2)).transpose(1, 2))


def random_state(
    model: nn.Module, dtype: torch.dtype | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return values for a model's state dict that no constructor would give; contiguous and apart."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            state[key] = torch.randn(value.shape, generator=generator).abs().add(0.1).to(dtype or value.dtype)
        else:
            state[key] = torch.randint(0, 5, value.shape, generator=generator, dtype=value.dtype)
    return state


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, in C order."""
    flat = tensor.detach().contiguous()
    return ctypes.string_at(flat.data_ptr(), flat.numel() * flat.element_size()) if flat.numel() else b""


def save_safetensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write with the safetensors library (its torch helper wants NumPy, its core does not)."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    entries = {
        name: safetensors.TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=list(tensor.shape),
            data_ptr=tensor.data_ptr(),
            data_len=tensor.nbytes,
        )
        for name, tensor in tensors.items()
    }
    safetensors.serialize_file(entries, str(path), metadata)


def write_checkpoint(
    folder: Path,
    state: dict[str, torch.Tensor],
    *,
    shards: int = 3,
    kind: str = "safetensors",
    config: dict | None = None,
) -> Path:
    """Write a sharded checkpoint with its index, keys dealt round robin; kind is safetensors, bin or legacy."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    keys = list(state)
    weight_map = {}
    for number in range(shards):
        part = {key: state[key] for key in keys[number::shards]}
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        if kind == "safetensors":
            save_safetensors(part, folder / name, {"format": "pt"})
        else:
            torch.save(part, folder / name, _use_new_zipfile_serialization=kind == "bin")
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def torch_filled(make, state: dict[str, torch.Tensor]) -> nn.Module:
    """The oracle: the class built on the CPU, filled by torch's own load_state_dict."""
    model = make()
    model.load_state_dict(state, assign=True)
    return model.eval()


def assert_same_state(model: nn.Module, oracle: nn.Module) -> None:
    """Assert equal keys, dtypes and bits."""
    ours, theirs = model.state_dict(), oracle.state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype, key
        assert torch.equal(ours[key], value), key


def meta_names(model: nn.Module) -> list[str]:
    """Return the names of everything on meta: parameters, buffers, plain tensor attributes."""
    found = []
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers, module.__dict__):
            found += [f"{path}.{n}" for n, v in table.items() if isinstance(v, torch.Tensor) and v.is_meta]
    return found


def run_python(code: str, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter and return what it printed; it has to succeed."""
    import os

    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, **(env or {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


__all__ = [
    "Block",
    "Net",
    "Shell",
    "assert_same_state",
    "build_shell",
    "meta_names",
    "random_state",
    "run_python",
    "save_safetensors",
    "tensor_bytes",
    "torch_filled",
    "write_checkpoint",
]
