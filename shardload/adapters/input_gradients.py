"""What reentrant gradient checkpointing needs of a frozen base: an input that requires gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class InputGradients:
    """A forward hook on the embedding: while gradient checkpointing is on, what it returns requires gradients.

    `checkpoint(..., use_reentrant=True)` recomputes a layer only for gradients of its inputs, and with a frozen base
    nothing before the first adapter requires any: A and B would get none. `flags` are the modules whose
    `gradient_checkpointing` says that it is on, so that it may be switched on and off at any time.
    """

    def __init__(self, flags: list[nn.Module]) -> None:
        self.flags = flags

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Return the output, as one that requires gradients where that is needed."""
        del arguments
        needed = (
            module.training
            and torch.is_grad_enabled()
            and isinstance(output, torch.Tensor)
            and output.is_floating_point()
            and not output.requires_grad
            and any(getattr(flag, "gradient_checkpointing", False) for flag in self.flags)
        )
        # A copy: the model may write to its embeddings in place, which a leaf does not allow.
        return output.detach().requires_grad_().clone() if needed else output


def hook_inputs(model: nn.Module) -> None:
    """Put the hook on a model's input embeddings, once, if it knows gradient checkpointing."""
    embedding = _input_embedding(model)
    flags = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if embedding is not None and flags and not _hooks(embedding):
        embedding.register_forward_hook(InputGradients(flags))


def unhook_inputs(model: nn.Module) -> None:
    """Take the hook off again."""
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
