"""A small base model and adapters for it, written as PEFT writes them, without PEFT."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors import TensorSpec, serialize_file
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "base_model.model."
WIDTH, HIDDEN, CLASSES, VOCABULARY = 8, 12, 3, 11


class Scaled(nn.Linear):
    """A Linear subclass with a forward of its own, as quantised layers have."""

    def forward(self, input):  # noqa: A002
        return 2 * super().forward(input)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = Scaled(HIDDEN, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(x + self.down(torch.tanh(self.up(self.q(x)))))


class Tiny(nn.Module):
    """Two blocks and a head, in evaluation mode, with the same weights every time."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.embed = nn.Embedding(VOCABULARY, WIDTH)
            self.layers = nn.ModuleList(Block() for _ in range(2))
            self.score = nn.Linear(WIDTH, CLASSES)
        self.to(dtype).eval()

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.score(x)


TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 10]])


def config(**settings):
    return {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 6,
        "bias": "none",
        "init_lora_weights": True,
        **settings,
    }


def lora_tensors(model, names=("q", "up", "down"), rank=2, dtype=torch.float32, seed=0):
    """Random A and B for the linear layers whose last name is one of `names`."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in names:
            a = torch.randn(rank, module.in_features, generator=random) / 2
            b = torch.randn(module.out_features, rank, generator=random) / 2
            tensors[f"{PREFIX}{path}.lora_A.weight"] = a.to(dtype)
            tensors[f"{PREFIX}{path}.lora_B.weight"] = b.to(dtype)
    return tensors


def save_file(tensors, path):
    """Write with the safetensors library's core; its helper for torch wants NumPy."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=list(tensor.shape),
            data_ptr=tensor.data_ptr(),
            data_len=tensor.nbytes,
        )
        for name, tensor in tensors.items()
    }
    serialize_file(specs, str(path), {"format": "pt"})


def write(folder: Path, tensors, settings=None, form="safetensors") -> Path:
    """Write an adapter folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "safetensors":
        save_file(tensors, folder / "adapter_model.safetensors")
    else:
        torch.save(tensors, folder / "adapter_model.bin")
    if settings is not False:
        (folder / "adapter_config.json").write_text(json.dumps(config() if settings is None else settings))
    return folder


def snapshot(model):
    """Everything a refused load must leave alone: identity and value of each tensor, classes, flags, names."""
    tensors = {
        name: (id(tensor), tensor.requires_grad, tensor.detach().clone())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    modules = {
        name: (
            id(module),
            type(module),
            set(vars(module)),
            list(module._modules),
            list(module._forward_hooks),
        )
        for name, module in model.named_modules()
    }
    return tensors, modules


def assert_unchanged(model, before):
    tensors, modules = before
    now_tensors, now_modules = snapshot(model)
    assert now_modules == modules
    assert now_tensors.keys() == tensors.keys()
    for name, (identity, flag, value) in tensors.items():
        assert now_tensors[name][:2] == (identity, flag), name
        assert torch.equal(now_tensors[name][2], value), name


def by_hand(model, tensors, scale, tokens=TOKENS):
    """The logits of a copy of `model` with scale * B @ A added by hooks, from the formula."""
    handles = []
    for key, a in tensors.items():
        if not key.endswith("lora_A.weight"):
            continue
        path = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        b = tensors[key.replace("lora_A", "lora_B")]
        factor = scale(path) if callable(scale) else scale

        def add(module, args, out, a=a, b=b, factor=factor):
            return out + factor * (args[0].to(a.dtype) @ a.T @ b.T).to(out.dtype)

        handles.append(model.get_submodule(path).register_forward_hook(add))
    with torch.no_grad():
        logits = model(tokens)
    for handle in handles:
        handle.remove()
    return logits
