"""How many of a model's parameters train."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from shardload.adapters.attach import adapters_of

if TYPE_CHECKING:
    from collections.abc import Iterator


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

    Every adapter's are among them, and both the base's and the adapter's tensors of `modules_to_save`; a tied
    parameter counts once, and a parameter of bitsandbytes' 4-bit layers as what it holds.
    """
    seen: dict[int, nn.Parameter] = {id(parameter): parameter for parameter in _parameters(model)}
    trainable = sum(_numel(parameter) for parameter in seen.values() if parameter.requires_grad)
    return TrainableParameters(trainable, sum(map(_numel, seen.values())))


def _parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    yield from model.parameters()
    adapters = adapters_of(model)
    for attached in () if adapters is None else adapters.attached.values():
        for swap in attached.replaced:
            if swap.whole:
                yield from (one for one in (swap.original, swap.own) if isinstance(one, nn.Parameter))


def _numel(parameter: nn.Parameter) -> int:
    count = parameter.numel()
    # DeepSpeed's ZeRO-3 keeps the number beside an empty tensor.
    count = getattr(parameter, "ds_numel", count) if count == 0 else count
    if type(parameter).__name__ == "Params4bit":
        count *= 2 * parameter.element_size()
    return count
