"""A small base model and adapters for it, written as PEFT writes them, without PEFT."""

from __future__ import annotations

import io
import json
import pickle
from typing import TYPE_CHECKING

import torch
from safetensors import TensorSpec, serialize_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from shardload import set_adapter

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


def error(ours, wanted):
    """The largest difference, relative to the largest value."""
    return ((ours - wanted).abs().max() / wanted.abs().max()).item()


def randomised(model):
    """Add random numbers to every factor."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=random) / 3)
    return model


def gradients(model):
    """The gradients of one backward pass, by name."""
    model.zero_grad(set_to_none=True)
    model(TOKENS).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def dumped(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Checkpointed(Tiny):
    """Recomputes its blocks while `gradient_checkpointing` says so, as models of transformers do."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.gradient_checkpointing = False
        self.reentrant = reentrant

    def get_input_embeddings(self):
        return self.embed

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, use_reentrant=self.reentrant)
            else:
                x = layer(x)
        return self.score(x)


def adapted(model):
    """The paths of the adapted layers."""
    return [name for name, module in model.named_modules() if hasattr(module, "lora_terms")]


def tied():
    """A Tiny with an output head that is tied to its embedding."""
    model = Tiny()
    model.head = nn.Linear(8, 11, bias=False)
    model.head.weight = model.embed.weight
    return model


def head(seed):
    """A stored head for `modules_to_save`."""
    random = torch.Generator().manual_seed(seed)
    return {
        f"{PREFIX}score.weight": torch.randn(3, 8, generator=random),
        f"{PREFIX}score.bias": torch.randn(3, generator=random),
    }


def logits(model, which, tokens=TOKENS):
    set_adapter(model, which)
    with torch.no_grad():
        return model(tokens)


def whole_file():
    """An adapter with every kind of tensor, and its settings."""
    model = Tiny()
    tensors = lora_tensors(model, rank=3)
    for key in list(tensors):
        if "lora_B" in key:
            tensors[key.replace(".weight", ".bias")] = torch.ones(len(tensors[key]))
    for n in (0, 1):
        tensors[f"{PREFIX}layers.{n}.up.base_layer.bias"] = torch.ones(12)
        tensors[f"{PREFIX}layers.{n}.down.base_layer.bias"] = torch.ones(8)
    tensors[f"{PREFIX}score.weight"] = torch.randn(3, 8)
    tensors[f"{PREFIX}score.bias"] = torch.ones(3)
    return tensors, config(r=3, bias="lora_only", lora_bias=True, modules_to_save=["score"])
