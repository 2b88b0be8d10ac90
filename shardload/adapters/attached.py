"""The record of what is attached to a model: the adapters, their layers, and what each replaces of the base."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from shardload.adapters.switch import Switch
from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from shardload.adapters.adapter_report import AdapterReport
    from shardload.adapters.layers import LoraLayer


@dataclass
class ReplacedTensor:
    """A parameter or buffer of the base, and the adapter's own that replaces it while the adapter is active.

    `whole`: it belongs to `modules_to_save`; PEFT keeps both tensors, and counts both.
    """

    module: nn.Module
    attribute: str
    original: torch.Tensor
    own: torch.Tensor
    whole: bool = False


@dataclass
class ReplacedAttribute:
    """An attribute with another value while an adapter is active: a vocabulary's size, a stack of layers."""

    target: Any
    attribute: str
    original: Any
    own: Any


@dataclass
class Attached:
    """One adapter on a model: its layers, what it replaces, how it was loaded, and its adapter_config.json."""

    name: str
    trainable: bool
    report: AdapterReport | None = None
    config: Mapping[str, Any] | None = None
    layers: list[LoraLayer] = field(default_factory=list)
    replaced: list[ReplacedTensor] = field(default_factory=list)
    replaced_attributes: list[ReplacedAttribute] = field(default_factory=list)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the adapter's own parameters: A, B, the bias of B, and the replacements of the base's."""
        for layer in self.layers:
            yield from layer.lora_parameters(self.name)
        for replaced in self.replaced:
            if isinstance(replaced.own, nn.Parameter):
                yield replaced.own


class Merged(Protocol):
    """What `merge` keeps for `unmerge`: the merged adapters with their weights."""

    weights: Mapping[str, float]


@dataclass
class Adapters:
    """Everything that is attached to one model, kept on the model itself so that it is copied and pickled with it.

    `replacing` are the adapters that replace tensors of the base now. `merged` is what `merge` changed and has to
    restore, None while the weights are the base's own. `frozen` are the module and name of each of the base's
    parameters that required gradients before the first adapter came; the parameter itself may be another one since.
    """

    switch: Switch = field(default_factory=Switch)
    attached: dict[str, Attached] = field(default_factory=dict)
    replacing: tuple[str, ...] = ()
    merged: Merged | None = None
    frozen: list[tuple[nn.Module, str]] = field(default_factory=list)

    def refuse_fill(self) -> None:
        """Raise UsageError while the base's own tensors lie in this record: a load could not reach them."""
        holding = [
            name
            for name, attached in self.attached.items()
            if attached.replaced or attached.replaced_attributes
        ]
        if self.merged is not None or holding:
            raise UsageError(
                "adapters are merged into the weights, and unmerge would put the old ones back"
                if self.merged is not None
                else f"adapters keep the base's own tensors beside theirs, and a load can't reach them: {holding}",
                where="model",
                cure="call unmerge(model) first"
                if self.merged is not None
                else "delete_adapter(model, name), fill, and attach it again",
            )
