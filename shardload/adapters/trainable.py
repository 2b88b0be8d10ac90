"""Which of a model's parameters train: counting them, marking them, and their state dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from shardload.adapters.attach import activate, adapters_of, record_of
from shardload.adapters.input_gradients import hook_inputs
from shardload.adapters.layers import LORA_PARTS, LoraLayer
from shardload.adapters.replaced import note_biases, replace_base
from shardload.adapters.switch import LOCK
from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_BIASES = ("none", "lora_only", "all")


class TrainableParameters(NamedTuple):
    """Numbers of parameters: those that require gradients, and all of them; `str()` is PEFT's line."""

    trainable: int
    total: int

    def __str__(self) -> str:
        """Return "trainable params: … || all params: … || trainable%: …"."""
        share = 100 * self.trainable / self.total if self.total else 0.0
        return (
            f"trainable params: {self.trainable:,d} || all params: {self.total:,d} || trainable%: {share:.4f}"
        )


def trainable_parameters(model: nn.Module) -> TrainableParameters:
    """Count a model's parameters, as PEFT's `print_trainable_parameters` does.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"])
        >>> print(shardload.trainable_parameters(model))
        trainable params: 12 || all params: 22 || trainable%: 54.5455

    Every adapter's are among them, and both the base's and the adapter's tensors of `modules_to_save`; a tied
    parameter counts once, and a parameter of bitsandbytes' 4-bit layers as what it holds.
    """
    seen: dict[int, nn.Parameter] = {id(parameter): parameter for parameter in _parameters(model)}
    trainable = sum(_numel(parameter) for parameter in seen.values() if parameter.requires_grad)
    return TrainableParameters(trainable, sum(map(_numel, seen.values())))


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Let the active adapters train and nothing else, as loralib's function of this name does.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"])
        >>> model = model.requires_grad_(True)
        >>> shardload.mark_only_lora_as_trainable(model)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['0.lora_A.default.weight', '0.lora_B.default.weight']

    `bias`: "none", "lora_only" (those of the adapted layers) or "all". Unlike in loralib, copies of the biases train,
    which belong to the first active adapter from then on and are saved with it; the base keeps its own. Raises
    UsageError when no adapter is active, or for another `bias`.
    """
    with LOCK:
        adapters = record_of(model)
        chosen = dict(adapters.switch.chosen.weights)
        if bias not in _BIASES or not chosen:
            raise UsageError(
                f"bias must be one of {', '.join(_BIASES)}, not {bias!r}"
                if chosen
                else "no adapter is active"
            )
        for name, attached in adapters.attached.items():
            attached.trainable = attached.trainable or name in chosen
        first = adapters.attached[next(iter(chosen))]
        if bias != "none":
            replace_base(adapters, ())
            note_biases(model, first, bias)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        activate(model, chosen)
        hook_inputs(model)


def lora_state_dict(model: nn.Module, bias: str = "none") -> dict[str, torch.Tensor]:
    """Return the part of `model.state_dict()` that is the adapters', as loralib's function of this name does.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=3, targets=["0"])
        >>> {name: tuple(tensor.shape) for name, tensor in shardload.lora_state_dict(model).items()}
        {'0.lora_A.default.weight': (3, 4), '0.lora_B.default.weight': (2, 3)}

    `bias`: "none", "lora_only" or "all" adds biases, those of the adapted layers or all, as they are now. It goes back
    with `load_state_dict(..., strict=False)` into a model with the same adapters attached; `save_adapter` writes files
    that others load.
    """
    if bias not in _BIASES:
        raise UsageError(f"bias must be one of {', '.join(_BIASES)}, not {bias!r}")
    state: dict[str, torch.Tensor] = model.state_dict()
    layers = {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}
    starts = tuple(f"{path}.{part}." if path else f"{part}." for path in layers for part in LORA_PARTS)
    biases = {f"{path}.bias" if path else "bias" for path in layers}
    return {
        key: value
        for key, value in state.items()
        if key.startswith(starts)
        or (bias == "all" and key.rpartition(".")[2] == "bias")
        or (bias == "lora_only" and key in biases)
    }


def _parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    yield from model.parameters()
    adapters = adapters_of(model)
    for attached in () if adapters is None else adapters.attached.values():
        for replaced in attached.replaced:
            if replaced.whole:
                yield from (one for one in (replaced.original, replaced.own) if isinstance(one, nn.Parameter))


def _numel(parameter: nn.Parameter) -> int:
    count = parameter.numel()
    # DeepSpeed's ZeRO-3 keeps the number beside an empty tensor.
    count = getattr(parameter, "ds_numel", count) if count == 0 else count
    if type(parameter).__name__ == "Params4bit":
        count *= 2 * parameter.element_size()
    return count
