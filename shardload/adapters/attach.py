"""Attaches read adapters to a model in place, makes them active, and takes them off again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from shardload.adapters.adapter import listing
from shardload.adapters.input_gradients import hook_inputs, unhook_inputs
from shardload.adapters.layers import Factor, LoraLayer, adapt
from shardload.adapters.resolve import tensor_of
from shardload.adapters.switch import LOCK, Choice, Switch
from shardload.adapters.values import as_parameter
from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardload.adapters.adapter_match import AdapterMatch
    from shardload.adapters.adapter_report import AdapterReport
    from shardload.adapters.values import AdapterValues

_RECORD = "_shardload_adapters"


@dataclass
class Replaced:
    """A parameter or buffer of the base and the adapter's own in its place; `own` is put in while active.

    `whole` says that it belongs to `modules_to_save`, of which PEFT keeps both.
    """

    module: nn.Module
    attribute: str
    original: torch.Tensor
    own: torch.Tensor
    whole: bool = False


@dataclass
class Swap:
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
    replaced: list[Replaced] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)

    @property
    def changes_base(self) -> bool:
        """Whether something of the base has to make place while it is active."""
        return bool(self.replaced or self.swaps)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the adapter's own parameters: A, B, the bias of B, and those that replace the base's."""
        for layer in self.layers:
            yield from layer.lora_parameters(self.name)
        for swap in self.replaced:
            if isinstance(swap.own, nn.Parameter):
                yield swap.own


class Merged(Protocol):
    """What `merge` left behind: the adapters with their weights, and what it takes to undo it."""

    weights: Mapping[str, float]


@dataclass
class Adapters:
    """Everything that is attached to one model, kept on the model itself so that it is copied and pickled with it.

    `placed` are the adapters whose own tensors are in the places of the base's now. `merged` is what `merge` changed
    and has to put back, None while the weights are the base's own. `frozen` are the places of the
    base's parameters that required gradients before the first adapter came: module and name. The parameters
    themselves may be replaced meanwhile, as `fill` does.
    """

    switch: Switch = field(default_factory=Switch)
    attached: dict[str, Attached] = field(default_factory=dict)
    placed: tuple[str, ...] = ()
    merged: Merged | None = None
    frozen: list[tuple[nn.Module, str]] = field(default_factory=list)


def adapters_of(model: nn.Module) -> Adapters | None:
    """Return what is attached to this model, or None."""
    found = vars(model).get(_RECORD)
    return found if isinstance(found, Adapters) else None


def record_of(model: nn.Module) -> Adapters:
    """Return what is attached to this model; raises UsageError when that is nothing."""
    adapters = adapters_of(model) if isinstance(model, nn.Module) else None
    if adapters is None:
        raise UsageError(
            f"no adapter is attached to this {type(model).__name__}",
            where="model",
            cure="pass the module that load_adapter or attach_lora was called with",
        )
    return adapters


def check_unmerged(adapters: Adapters) -> None:
    """Raise UsageError while adapters are merged into the base's weights: another choice would add to them."""
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
    """Raise UsageError for a name that no adapter can have, or that one on this model already has."""
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


def check_owner(model: nn.Module, match: AdapterMatch) -> None:
    """Raise UsageError when a layer was adapted through another root (one switch rules one model), or is merged."""
    adapters = adapters_of(model)
    if adapters is not None:
        check_unmerged(adapters)
    own = None if adapters is None else adapters.switch
    for found in match.layers:
        if isinstance(found.layer, LoraLayer) and found.layer.lora_switch is not own:
            raise UsageError(
                "adapters were attached to a larger or smaller part of this model before",
                where=found.path,
                cure="pass the same module to every load_adapter call",
            )


def attach_values(model: nn.Module, name: str, values: AdapterValues, *, trainable: bool) -> Attached:
    """Attach read tensors to their layers and freeze the base; the first adapter becomes the active one.

    Nothing here can fail for what a file holds: that was judged before. If it is interrupted all the same, the
    model is put back as it was.
    """
    adapters = adapters_of(model)
    if adapters is None:
        adapters = Adapters()
        _freeze(model, adapters)
        vars(model)[_RECORD] = adapters
    attached = adapters.attached[name] = Attached(name, trainable)
    try:
        _put_layers(attached, values, adapters.switch)
        _put_replaced(model, attached, values)
        if len(adapters.attached) == 1:
            activate(model, {name: 1.0})
        if trainable:
            hook_inputs(model)
    except BaseException:
        detach(model, name)
        raise
    return attached


def exchange(model: nn.Module, old: Attached, values: AdapterValues) -> Attached:
    """Put read tensors in the place of an attached adapter's, which is not in the places of the base's now.

    Raises UsageError when the new one can't be active as the old one is: then nothing has been changed.
    """
    adapters, name = record_of(model), old.name
    new = Attached(name, old.trainable)
    _put_replaced(model, new, values)
    chosen = adapters.switch.chosen.weights
    if name in chosen and (old.changes_base or new.changes_base) and adapters.switch.live:
        raise UsageError(
            "these adapters replace tensors of the base, and a `with` block is open that has its own choice",
            where=name,
            cure="leave the block first",
        )
    if name in chosen:
        adapters.attached[name] = new
        try:
            check_apart(adapters, chosen)
        except UsageError:
            adapters.attached[name] = old
            raise
    adapters.attached[name] = new
    staying = {id(module) for value in values.layers for module in (value.match.layer, *value.match.ties)}
    for layer in old.layers:
        if id(layer) in staying:
            layer.lora_remove(name)
        else:
            layer.lora_drop(name)
    _put_layers(new, values, adapters.switch)
    activate(model, dict(chosen))
    return new


def _put_layers(attached: Attached, values: AdapterValues, switch: Switch) -> None:
    seen: set[int] = set()
    for value in values.layers:
        found = value.match
        for module in (found.layer, *found.ties):
            layer = adapt(module, found.kind.host_of(module), switch)
            if id(layer) not in seen:
                seen.add(id(layer))
                attached.layers.append(layer)
            layer.lora_put(attached.name, found.reading.term, value.factors)


def _put_replaced(model: nn.Module, attached: Attached, values: AdapterValues) -> None:
    for match, tensor in values.replaced:
        original = tensor_of(match.module, match.entry.attribute)
        if original is None:
            continue
        own = as_parameter(tensor) if isinstance(original, nn.Parameter) else tensor
        places = [(match.module, match.entry.attribute), *match.ties]
        attached.replaced += [
            Replaced(module, place, original, own, whole=not match.entry.tied) for module, place in places
        ]
        if match.resized:
            attached.swaps += _resizes(model, [module for module, _ in places], len(original), len(own))
    if values.replication is not None:
        attached.swaps += [Swap(*swap) for swap in values.replication.swaps()]


def add_biases(model: nn.Module, attached: Attached, bias: str) -> None:
    """Let copies of the base's biases ("lora_only": of the adapter's layers, or "all") belong to an adapter.

    No adapter's tensors may be in the places of the base's now.
    """
    known = {(id(swap.module), swap.attribute) for swap in attached.replaced}
    own: dict[int, nn.Parameter] = {}
    for module in model.modules() if bias == "all" else attached.layers:
        original = module._parameters.get("bias")
        if original is not None and (id(module), "bias") not in known and not isinstance(module, Factor):
            copy = own.setdefault(id(original), as_parameter(original.detach().clone()))
            attached.replaced.append(Replaced(module, "bias", original, copy))
    attached.config = {**(attached.config or {}), "bias": bias}


def activate(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Make exactly these adapters active, each with its weight; {} leaves the plain base.

    Raises UsageError for a name that is not attached, or for two adapters that replace the same tensor.
    """
    with LOCK:
        adapters = record_of(model)
        check_unmerged(adapters)
        unknown = [name for name in weights if name not in adapters.attached]
        if unknown:
            raise UsageError(
                f"no adapter called {listing(list(map(repr, unknown)))} is attached",
                where=f"attached: {listing(list(adapters.attached))}",
            )
        check_apart(adapters, weights)
        wanted = tuple(name for name in weights if adapters.attached[name].changes_base)
        if wanted != adapters.placed and adapters.switch.live:
            raise UsageError(
                "these adapters replace tensors of the base, and a `with` block is open that has its own choice",
                where=listing(wanted or adapters.placed),
                cure="leave the block first",
            )
        place(adapters, wanted)
        adapters.switch.chosen = Choice(dict(weights))
        for name, attached in adapters.attached.items():
            for parameter in attached.parameters() if attached.trainable else ():
                parameter.requires_grad_(name in weights)


def check_apart(adapters: Adapters, weights: Mapping[str, float]) -> None:
    """Raise UsageError for adapters that replace the same tensor of the base, or replace one and are weighted."""
    swaps = [swap for name in weights for swap in adapters.attached[name].replaced]
    if len({(id(swap.module), swap.attribute) for swap in swaps}) < len(swaps):
        raise UsageError(
            "two of these adapters replace the same tensor of the base (a bias, or a part of modules_to_save)",
            where=listing(list(weights)),
            cure="make one of them active at a time",
        )
    changed = [
        (id(swap.target), swap.attribute) for name in weights for swap in adapters.attached[name].swaps
    ]
    repeats = any(
        isinstance(swap.own, nn.Module) for name in weights for swap in adapters.attached[name].swaps
    )
    if len(set(changed)) < len(changed) or (repeats and len(weights) > 1):
        raise UsageError(
            "these adapters change the shape of the base (its vocabulary, or its layers), each in its own way",
            where=listing(list(weights)),
            cure="make one of them active at a time",
        )
    weighted = [name for name, weight in weights.items() if weight != 1 and adapters.attached[name].replaced]
    if weighted:
        raise UsageError(
            "an adapter that replaces tensors of the base (a bias, or modules_to_save) has no weight but 1",
            where=listing(weighted),
            cure="give it the weight 1",
        )


def place(adapters: Adapters, names: tuple[str, ...]) -> None:
    """Put the own tensors of these adapters in the places of the base's, and back those of all others."""
    names = tuple(name for name in names if name in adapters.attached)
    if names == adapters.placed:
        return
    for name in adapters.placed:
        for swap in adapters.attached[name].replaced:
            swap.own = _put(swap, swap.original)
        for change in adapters.attached[name].swaps:
            setattr(change.target, change.attribute, change.original)
    adapters.placed = names
    for name in names:
        for swap in adapters.attached[name].replaced:
            swap.original = _put(swap, swap.own)
        for change in adapters.attached[name].swaps:
            setattr(change.target, change.attribute, change.own)


def detach(model: nn.Module, name: str) -> None:
    """Take one adapter off, in place. After the last one the model is as it was: classes, parameters, gradients.

    Raises UsageError when no adapter of this name is attached, or a `with` block that is open runs with it.
    """
    with LOCK:
        adapters = record_of(model)
        if name not in adapters.attached:
            raise UsageError(
                f"no adapter called {name!r} is attached",
                where=f"attached: {listing(list(adapters.attached))}",
            )
        check_unmerged(adapters)
        if any(name in choice.weights for choice in adapters.switch.live):
            raise UsageError(
                f"a `with` block that is open runs with the adapter {name!r}",
                where="name",
                cure="leave the block first",
            )
        chosen = adapters.switch.chosen.weights
        if name in chosen:
            activate(model, {other: weight for other, weight in chosen.items() if other != name})
        for layer in adapters.attached.pop(name).layers:
            layer.lora_drop(name)
        if not adapters.attached:
            for module, attribute in adapters.frozen:
                parameter = module._parameters.get(attribute)
                if parameter is not None:
                    parameter.requires_grad_(True)
            unhook_inputs(model)
            del vars(model)[_RECORD]


def _resizes(model: nn.Module, modules: list[nn.Module], rows: int, own: int) -> Iterator[Swap]:
    """Yield the sizes that follow a resized vocabulary: those of the modules, and the config's vocab_size."""
    for module in modules:
        size = "num_embeddings" if isinstance(module, nn.Embedding) else "out_features"
        yield Swap(module, size, rows, own)
    config = getattr(model, "config", None)
    if getattr(config, "vocab_size", None) == rows and modules and isinstance(modules[0], nn.Embedding):
        yield Swap(config, "vocab_size", rows, own)


def _freeze(model: nn.Module, adapters: Adapters) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                parameter.requires_grad_(False)
                adapters.frozen.append((module, name))


def _put(swap: Replaced, tensor: torch.Tensor) -> torch.Tensor:
    """Put a tensor in its place in the module and return the one that was there.

    The model may have moved to another device or dtype since: the tensor follows.
    """
    module, name = swap.module, swap.attribute
    current = tensor_of(module, name)
    place = module._parameters if name in module._parameters else module._buffers
    if current is None:
        raise UsageError(f"the model has lost its tensor {name!r} since the adapter was attached")
    if tensor.device != current.device or tensor.dtype != current.dtype:
        moved = tensor.detach().to(device=current.device, dtype=current.dtype)
        if isinstance(tensor, nn.Parameter):
            # As nn.Module.to does it: the object stays, and so does every tie.
            tensor.data = moved
        else:
            tensor = moved
    place[name] = tensor  # type: ignore[assignment]
    return current
