"""Device hooks: one pair of torch's hooks a block, which move its inputs to its device and bring what lies elsewhere.

Outputs stay where the block computed them, so a value crosses once from each device to the next. Two kinds of output do
not: the model's own come back to where its inputs were; and where a module computes with tensors of its own between its
blocks, what its parts return comes to the device of these tensors.

A block that accelerate's hook is on belongs to accelerate, whose `dispatch_model` may take a model over at any time.
The hooks do not lock: one forward of a model at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from copy import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shardload.model.blocks import Unit, groups_of, is_called
from shardload.model.shell import modules_of
from shardload.placement.device_map import BESIDE
from shardload.placement.offloading import Ahead, Visit, found_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardload.placement.device_map import Place, Settled
    from shardload.placement.machine import Machine

_TO_INPUTS = "inputs"  # outputs go to where the inputs were


class BlockHooks:
    """The pair of hooks of one module. `device` is where it runs; None where only its outputs are moved.

    With `own` the module's own tensors are brought (see `_own_tables`), and not those below it. `following` is the next
    block that is brought, which is fetched while this one runs. `returns` is where its outputs go; None leaves them.
    """

    def __init__(self, module: nn.Module, ahead: Ahead, device: Any, *, own: bool = False) -> None:
        self.module, self.ahead, self.device, self.own = module, ahead, device, own
        self.following: BlockHooks | None = None
        self.returns: Any = None
        self._visits: list[Visit] = []
        self._handles = (
            module.register_forward_pre_hook(self.before, with_kwargs=True),
            module.register_forward_hook(self.after, with_kwargs=True, always_call=True),
        )

    def remove(self) -> None:
        """Take the hooks off the module, whose tensors stay where they lie."""
        self._put_back()
        self.ahead.drop()
        for handle in self._handles:
            handle.remove()

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Move the inputs to the block's device, and bring what lies elsewhere."""
        self._put_back()  # what a forward left that was interrupted, by Ctrl-C say
        if hasattr(module, "_hf_hook"):
            return None
        machine = self.ahead.machine
        came_from = _device_of((args, kwargs), machine) if self.returns == _TO_INPUTS else None
        visit = Visit(machine, self.device, came_from)
        self._visits.append(visit)
        if self.device is None:
            return None
        moved = _moved(args, machine, self.device), _moved(kwargs, machine, self.device)
        found = self.elsewhere()
        if found:
            sources = _distinct(found)
            here = self.ahead.take(sources, self.device)
            if self.following is not None:
                self.following.fetch()
            visit.place(found, sources, here)
        return moved

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ARG002
        """Put back what was brought; called after an error too."""
        if not self._visits:
            return None
        came_from = self._visits[-1].came_from
        self._put_back()
        to = came_from if self.returns == _TO_INPUTS else self.returns
        return None if to is None else _moved(output, self.ahead.machine, to)

    def fetch(self) -> None:
        """Begin to fetch what the block will need."""
        if found := self.elsewhere():
            self.ahead.begin(_distinct(found), self.device)

    def elsewhere(self) -> list[tuple[nn.Module, dict[str, Any], str, torch.Tensor]]:
        """Return what does not lie on the block's device. Adapters that were attached since are found too."""
        own = (unit.module for unit in _own_tables(Unit("", self.module, own=True)))
        modules = own if self.own else self.module.modules()
        return found_elsewhere(modules, self.ahead.machine, self.device)

    def _put_back(self) -> None:
        while self._visits:
            self._visits.pop().put_back()


def install(model: nn.Module, settled: Settled, machine: Machine) -> int:
    """Put hooks on the blocks of a model whose tensors lie where a map says; return how many.

    There are none where all lies on one device.
    """
    remove_device_hooks(model)
    where = {*settled.places.values(), *settled.tensors.values(), settled.main}
    if len(where - {*BESIDE}) == 0 or len(where) == 1:
        return 0
    hooks = _hooks_of_blocks(model, settled, machine, Ahead(machine))
    for made in [each for each in hooks.values() if each.own]:
        for child in _called(made.module):
            if id(child) not in hooks:
                hooks[id(child)] = BlockHooks(child, made.ahead, None)
            hooks[id(child)].returns = made.device
    if id(model) not in hooks:
        hooks[id(model)] = BlockHooks(
            model, next(iter(hooks.values())).ahead, machine.device(settled.main), own=True
        )
    hooks[id(model)].returns = _TO_INPUTS
    return len(hooks)


def _hooks_of_blocks(
    model: nn.Module, settled: Settled, machine: Machine, ahead: Ahead
) -> dict[int, BlockHooks]:
    """Put hooks on all that has tensors, by the id of the module; each that is brought knows the next one."""
    whole = {id(unit.module) for group in groups_of(model) for unit in group.units if not unit.own}
    hooks: dict[int, BlockHooks] = {}
    brought: list[BlockHooks] = []
    for unit in _runs_alone("", model, whole, settled.place):
        if id(unit.module) in hooks:
            continue
        tables = _own_tables(unit) if unit.own else [unit]
        place = settled.place(next(name for table in tables for name, _ in table.tensors()))
        device = machine.device(settled.main if place in BESIDE else place)
        hooks[id(unit.module)] = made = BlockHooks(unit.module, ahead, device, own=unit.own)
        if place in BESIDE:
            brought.append(made)
    for one, following in pairwise(brought if settled.ahead else ()):
        one.following = following
    return hooks


def remove_device_hooks(model: nn.Module) -> nn.Module:
    """Take off what a device map put on a model, and return the model; its weights stay where they lie.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> model = shardload.from_pretrained("tiny", model_class=lambda _: torch.nn.Linear(4, 2), device_map="auto")
        >>> shardload.remove_device_hooks(model) is model, model.hf_device_map
        (True, {'': 'cpu'})

    Blocks that were brought to an accelerator then run on the processor, unless something else moves them:
    accelerate's `dispatch_model(model, model.hf_device_map)` say, which takes a model over with these hooks on as well.
    """
    for _, module in modules_of(model):
        for hook in list(module._forward_pre_hooks.values()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, BlockHooks):
                owner.remove()
    return model


def _runs_alone(
    path: str, module: nn.Module, whole: set[int], place: Callable[[str], Place]
) -> Iterator[Unit]:
    """Yield what gets hooks: blocks that lie on one device; what lies on several is taken apart."""
    unit = Unit(path, module)
    places = {place(name) for name, _ in unit.tensors()}
    if not places:
        return
    children = [Unit(f"{path}{name}.", child) for name, child in module._modules.items() if child is not None]
    alone = id(module) in whole or not any(True for child in children for _ in child.tensors())
    if len(places) == 1 and alone and is_called(module):
        yield unit
        return
    own = Unit(path, module, own=True)
    if is_called(module) and any(True for table in _own_tables(own) for _ in table.tensors()):
        yield own
    for child in children:
        yield from _runs_alone(child.path, child.module, whole, place)


def _own_tables(unit: Unit) -> Iterator[Unit]:
    """Yield a module, and what in it has no forward: with the tensors of a ParameterList its owner computes."""
    yield unit
    for name, child in unit.module._modules.items():
        if child is not None and not is_called(child):
            yield from _own_tables(Unit(f"{unit.path}{name}.", child, own=True))


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a module's own forward may call: lists of modules, say, are none."""
    for child in module._modules.values():
        if child is not None and not is_called(child):
            yield from _called(child)
        elif child is not None:
            yield child
            if isinstance(child, nn.Sequential):
                yield from _called(child)  # which may be called one by one


def _distinct(found: list[tuple[nn.Module, dict[str, Any], str, torch.Tensor]]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for *_, tensor in found}.values())


def _moved(value: Any, machine: Machine, device: Any) -> Any:
    """Return a value with its tensors on a device; the same object where nothing has to be moved."""
    if isinstance(value, torch.Tensor):
        return value if machine.where(value) == device else machine.moved(value, device)
    if isinstance(value, list | tuple):
        moved = [_moved(each, machine, device) for each in value]
        if all(new is old for new, old in zip(moved, value, strict=True)):
            return value
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if isinstance(value, Mapping):
        new = {name: _moved(each, machine, device) for name, each in value.items()}
        return value if all(new[name] is each for name, each in value.items()) else _filled(value, new)
    return value


def _filled(value: Mapping[Any, Any], new: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping like `value`, with all that it has beside its entries, that holds `new` in their place."""
    if not isinstance(value, MutableMapping):
        return type(value)(new)  # type: ignore[call-arg]
    like = copy(value)
    for name, each in new.items():
        like[name] = each
    return like


def _device_of(value: Any, machine: Machine) -> Any:
    """Return the device of the first tensor in a value, or None."""
    if isinstance(value, torch.Tensor):
        return machine.where(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((device for part in parts if (device := _device_of(part, machine)) is not None), None)
