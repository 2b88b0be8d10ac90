"""What is attached to a model: the adapters, what each replaces of the base, and which of them run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from shardload.adapters.adapter import listing
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

    @property
    def replaces_base(self) -> bool:
        """Whether it replaces tensors or attributes of the base while it is active."""
        return bool(self.replaced or self.replaced_attributes)

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


RECORD = "_shardload_adapters"
"""The model's attribute that keeps its `Adapters`."""


def adapters_of(model: nn.Module) -> Adapters | None:
    """Return what is attached to this model, or None."""
    found = vars(model).get(RECORD)
    return found if isinstance(found, Adapters) else None


def record_of(model: nn.Module) -> Adapters:
    """Return what is attached to this model. Raises UsageError when nothing is."""
    adapters = adapters_of(model) if isinstance(model, nn.Module) else None
    if adapters is None:
        raise UsageError(
            f"no adapter is attached to this {type(model).__name__}",
            where="model",
            cure="pass the module that load_adapter or attach_lora was called with",
        )
    return adapters


def check_unmerged(adapters: Adapters) -> None:
    """Raise UsageError while adapters are merged into the base's weights: another adapter would be added on top."""
    if adapters.merged is not None:
        raise UsageError(
            f"adapters are merged into the weights: {listing(list(adapters.merged.weights))}",
            where="model",
            cure="call unmerge(model) first",
        )


def active_adapters(model: nn.Module) -> dict[str, float]:
    """Return the adapters that run and their weights; {} when none is active or attached.

        >>> import torch, shardload
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> report = shardload.attach_lora(model, r=2, targets=["0"], name="mine")
        >>> shardload.active_adapters(model)
        {'mine': 1.0}

    Inside a `with` block of disable_adapter or adapter_batch it is the block's choice.
    """
    adapters = adapters_of(model)
    return {} if adapters is None else dict(adapters.switch.active)


def check_name(model: nn.Module, name: str) -> None:
    """Raise UsageError for a name that can't be an adapter's, or that an attached adapter already has."""
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"an adapter is attached to an nn.Module, not to a {type(model).__name__}", where="model"
        )
    if (
        not isinstance(name, str)
        or not name
        or "." in name
        or hasattr(nn.ModuleDict, name)
        or name == "training"
    ):
        raise UsageError(
            f"{name!r} can't be the name of an adapter: it becomes part of parameter names",
            where="name",
            cure='pass a plain word such as "default"',
        )
    adapters = adapters_of(model)
    if adapters is not None and name in adapters.attached:
        raise UsageError(
            f"an adapter called {name!r} is attached to this model already",
            where="name",
            cure="pass another name",
        )
