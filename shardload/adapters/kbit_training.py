"""prepare_model_for_kbit_training: a quantised model becomes the frozen base of a LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shardload._system.process_memory import size_of
from shardload.adapters.input_gradients import hook_inputs
from shardload.errors import MemoryLimitError, UsageError, Wording
from shardload.loading.provenance import REPORTS
from shardload.model.shell import modules_of
from shardload.model.wrapper_tensors import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

_HALVES = frozenset({torch.float16, torch.bfloat16})


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
    *,
    max_memory: int | None = None,
) -> nn.Module:
    """Prepare a quantised model for a LoRA on top, and return it: frozen, with what is not quantised in float32.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.bfloat16))
        >>> model = shardload.prepare_model_for_kbit_training(model)
        >>> model[0].weight.dtype, model[0].weight.requires_grad
        (torch.float32, False)

    Norms, the head, embeddings and biases of 16 bits become float32, in place; quantised weights stay as they are, and
    so do adapters. Gradient checkpointing is turned on where the class has it: then the input embeddings return
    tensors that require gradients, as the layers would get none otherwise. `max_memory` is the most that float32 may
    add, in bytes; what it adds is stated in the notes of `report_of(model)`. Raises UsageError for a model on meta,
    MemoryLimitError, before anything is changed.
    """
    tensors = list(_frozen(model))
    if any(tensor.is_meta for tensor in tensors):
        raise UsageError("the model is on meta and has no values", cure="fill it first")
    halves = [tensor for tensor in tensors if tensor.dtype in _HALVES and type(tensor) in PLAIN]
    added = sum(4 * tensor.numel() for tensor in halves)
    if max_memory is not None and added > max_memory:
        raise MemoryLimitError(
            f"float32 takes {size_of(added)} for {len(halves)} tensors, and max_memory allows {size_of(max_memory)}",
            cure=Wording("raise {max_memory}, or attach the adapter without this", max_memory=...),
        )
    for tensor in tensors:
        tensor.requires_grad_(False)
    for tensor in halves:
        tensor.data = tensor.data.float()  # the parameter stays itself: tied names stay tied
    if use_gradient_checkpointing and getattr(model, "supports_gradient_checkpointing", False):
        enable: Any = model.gradient_checkpointing_enable
        if gradient_checkpointing_kwargs is None:
            enable()
        else:
            enable(gradient_checkpointing_kwargs=dict(gradient_checkpointing_kwargs))
        hook_inputs(model)
    report = REPORTS.of(model)
    if report is not None and halves:
        report.notes.append(f"prepared for training: {len(halves)} tensors in float32 take {size_of(added)}")
    return model


def prepare_model_for_int8_training(
    model: nn.Module,
    output_embedding_layer_name: str = "lm_head",  # noqa: ARG001
    use_gradient_checkpointing: bool = True,
    layer_norm_names: tuple[str, ...] | list[str] = ("layer_norm",),  # noqa: ARG001
) -> nn.Module:
    """Do what `prepare_model_for_kbit_training` does: its name before 2023, with the arguments that it had.

        >>> import torch, shardload
        >>> model = shardload.prepare_model_for_int8_training(torch.nn.Linear(4, 4, dtype=torch.float16))
        >>> model.bias.dtype
        torch.float32

    Every norm and every head is in float32, so the names of the two are not needed.
    """
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing)


def _frozen(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield every parameter once that is not an adapter's."""
    seen: set[int] = set()
    for _, module in modules_of(model):
        for parameter in module._parameters.values():
            if parameter is None or id(parameter) in seen or hasattr(module, "of_an_adapter"):
                continue
            seen.add(id(parameter))
            yield parameter
