"""Attaches read adapters to a model in place, activates and detaches them; and finds what is attached to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from shardload.adapters.adapter import listing
from shardload.adapters.attached import Adapters, Attached
from shardload.adapters.input_gradients import hook_inputs, unhook_inputs
from shardload.adapters.layers import LoraLayer, adapt
from shardload.adapters.replaced import check_apart, note_replaced, replace_base
from shardload.adapters.switch import LOCK, Choice
from shardload.errors import UnsupportedError, UsageError
from shardload.model.shell import ADAPTERS
from shardload.model.wrapper_tensors import refuse_sharded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardload.adapters.adapter_match import AdapterMatch
    from shardload.adapters.adapter_report import AdapterReport
    from shardload.adapters.switch import Switch
    from shardload.adapters.values import AdapterValues


def adapters_of(model: nn.Module) -> Adapters | None:
    """Return what is attached to this model, or None."""
    found = vars(model).get(ADAPTERS)
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


def not_attached(names: Iterable[str], adapters: Adapters) -> UsageError:
    """Return the error for names of adapters that are not attached: it lists those that are."""
    attached = list(adapters.attached)
    return UsageError(
        f"no adapter called {listing([repr(str(name)) for name in names])} is attached",
        where=f"attached: {listing(attached)}",
        cure=f"name one that is attached: {listing([repr(name) for name in attached])}",
    )


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
    if any(kind.__module__.startswith("peft.") for kind in set(map(type, model.modules()))):
        raise UnsupportedError(
            "the model has PEFT's own adapter layers already",
            where=type(model).__name__,
            cure="pass what PEFT's model.unload() returns: the base without them",
        )
    refuse_sharded(model, "attaching an adapter")
    adapters = adapters_of(model)
    if adapters is not None and name in adapters.attached:
        raise UsageError(
            f"an adapter called {name!r} is attached to this model already",
            where="name",
            cure="pass another name",
        )


def replacing_of(adapters: Adapters, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the named adapters that replace tensors or attributes of the base while they are active."""
    return tuple(name for name in names if _replaces(adapters.attached[name]))


def _replaces(attached: Attached) -> bool:
    return bool(attached.replaced or attached.replaced_attributes)


def check_owner(model: nn.Module, match: AdapterMatch) -> None:
    """Raise UsageError for a layer that was adapted through another root module, and while adapters are merged."""
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


def attach_values(
    model: nn.Module, report: AdapterReport, values: AdapterValues, config: Mapping[str, Any] | None
) -> None:
    """Attach read tensors to their layers and freeze the base; the first adapter becomes the active one.

    The report gives the name and whether the adapter trains; it learns whether the adapter is active. `config` is the
    adapter_config.json. The content of the file was judged before and can't fail here; after an interrupt the model
    is as it was.
    """
    adapters = adapters_of(model)
    if adapters is None:
        adapters = vars(model)[ADAPTERS] = Adapters()
    name = report.name
    attached = adapters.attached[name] = Attached(name, report.trainable, report, config)
    try:
        if len(adapters.attached) == 1:
            _freeze(model, adapters)
        _add_to_layers(attached, values, adapters.switch)
        if values.replaced or values.replication is not None:
            note_replaced(model, attached, values)
        if len(adapters.attached) == 1:
            activate(model, {name: 1.0})
        if attached.trainable:
            hook_inputs(model)
    except BaseException:
        # An interrupt may come between adapting a layer and noting it.
        modules = dict.fromkeys(
            module for value in values.layers for module in (value.match.layer, *value.match.ties)
        )
        attached.layers = [module for module in modules if isinstance(module, LoraLayer)]
        detach(model, name)
        raise
    report.active = name in adapters.switch.chosen.weights


def replace_adapter(model: nn.Module, old: Attached, values: AdapterValues) -> Attached:
    """Replace an attached adapter by read tensors. The old one may not be replacing tensors of the base at this moment.

    Raises UsageError when the new one can't be active with the others that are: then nothing has changed.
    """
    adapters, name = record_of(model), old.name
    new = Attached(name, old.trainable)
    note_replaced(model, new, values)
    chosen = adapters.switch.chosen.weights
    if name in chosen and (_replaces(old) or _replaces(new)) and adapters.switch.live:
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
    _add_to_layers(new, values, adapters.switch)
    activate(model, dict(chosen))
    return new


def _add_to_layers(attached: Attached, values: AdapterValues, switch: Switch) -> None:
    seen: set[int] = set()
    for value in values.layers:
        found = value.match
        for module in (found.layer, *found.ties):
            layer = adapt(module, found.kind.host_of(module), switch)
            if id(layer) not in seen:
                seen.add(id(layer))
                attached.layers.append(layer)
            layer.lora_add(attached.name, found.reading.term, value.factors)


def activate(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Make exactly these adapters active, each with its weight; {} leaves the plain base.

    Raises UsageError for a name that is not attached, or for two adapters that replace the same tensor.
    """
    with LOCK:
        adapters = record_of(model)
        check_unmerged(adapters)
        unknown = [name for name in weights if name not in adapters.attached]
        if unknown:
            raise not_attached(unknown, adapters)
        wanted = replacing_of(adapters, weights)
        if wanted or adapters.replacing:
            check_apart(adapters, weights)
            if wanted != adapters.replacing and adapters.switch.live:
                raise UsageError(
                    "these adapters replace tensors of the base, and a `with` block is open that has its own choice",
                    where=listing(wanted or adapters.replacing),
                    cure="leave the block first",
                )
            replace_base(adapters, wanted)
        adapters.switch.chosen = Choice(dict(weights))
        for name, attached in adapters.attached.items():
            for parameter in attached.parameters() if attached.trainable else ():
                parameter.requires_grad_(name in weights)


def detach(model: nn.Module, name: str) -> None:
    """Detach one adapter, in place. After the last one the model is as it was: classes, parameters, gradients.

    Raises UsageError when no adapter of this name is attached, or a `with` block that is open runs with it.
    """
    with LOCK:
        adapters = record_of(model)
        if name not in adapters.attached:
            raise not_attached([name], adapters)
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
            del vars(model)[ADAPTERS]


def _freeze(model: nn.Module, adapters: Adapters) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                parameter.requires_grad_(False)
                adapters.frozen.append((module, name))
