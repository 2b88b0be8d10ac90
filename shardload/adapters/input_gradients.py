"""Reentrant gradient checkpointing over a frozen base: an input that requires gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class InputGradients:
    """A forward hook on the embedding: while gradient checkpointing is on, what it returns requires gradients.

    `checkpoint(..., use_reentrant=True)` recomputes a layer only for gradients of its inputs, and with a frozen base
    nothing before the first adapter requires any: A and B would get no gradient. `flags` are the modules with a
    `gradient_checkpointing` flag; it is read at every call, so that it may change at any time.
    """

    def __init__(self, flags: list[nn.Module]) -> None:
        self.flags = flags

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Return the output, which requires gradients while a flag is on."""
        del arguments
        needed = (
            module.training
            and torch.is_grad_enabled()
            and isinstance(output, torch.Tensor)
            and output.is_floating_point()
            and not output.requires_grad
            and any(getattr(flag, "gradient_checkpointing", False) for flag in self.flags)
        )
        # A copy: the model may write to its embeddings in place, which torch refuses for a leaf.
        return output.detach().requires_grad_().clone() if needed else output


def hook_inputs(model: nn.Module) -> None:
    """Register the hook on a model's input embeddings, once, if the model has gradient checkpointing."""
    embedding = _input_embedding(model)
    flags = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if embedding is not None and flags and not _hooks(embedding):
        embedding.register_forward_hook(InputGradients(flags))


def unhook_inputs(model: nn.Module) -> None:
    """Remove the hook."""
    for module in model.modules():
        for number in _hooks(module):
            del module._forward_hooks[number]


def _hooks(module: nn.Module) -> list[int]:
    return [number for number, hook in module._forward_hooks.items() if isinstance(hook, InputGradients)]


def _input_embedding(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_input_embeddings", None)
    try:
        found = getter() if callable(getter) else None
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None
