"""Attaches read adapters to a model in place, makes them active, and takes them off again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardload.adapters.adapter import listing
from shardload.adapters.attached import (
    RECORD,
    Adapters,
    Attached,
    adapters_of,
    check_unmerged,
    record_of,
)
from shardload.adapters.input_gradients import hook_inputs, unhook_inputs
from shardload.adapters.layers import LoraLayer, adapt
from shardload.adapters.replaced import check_apart, note_replaced, replace_base
from shardload.adapters.switch import LOCK, Choice
from shardload.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from shardload.adapters.adapter_match import AdapterMatch
    from shardload.adapters.adapter_report import AdapterReport
    from shardload.adapters.switch import Switch
    from shardload.adapters.values import AdapterValues


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
        adapters = vars(model)[RECORD] = Adapters()
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
    if name in chosen and (old.replaces_base or new.replaces_base) and adapters.switch.live:
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
            raise UsageError(
                f"no adapter called {listing(list(map(repr, unknown)))} is attached",
                where=f"attached: {listing(list(adapters.attached))}",
            )
        wanted = tuple(name for name in weights if adapters.attached[name].replaces_base)
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
            del vars(model)[RECORD]


def _freeze(model: nn.Module, adapters: Adapters) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                parameter.requires_grad_(False)
                adapters.frozen.append((module, name))
