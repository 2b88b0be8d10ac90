"""Blocks: the parts of a model that are kept whole when it is laid over several devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import nn

from shardload.model.shell import modules_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@dataclass(frozen=True, eq=False)
class Unit:
    """A module that is kept whole, with all tensors below it; or, with `own`, only the tensors of the module itself.

    `path` is the prefix of its names: "" or "layers.0.".
    """

    path: str
    module: nn.Module
    own: bool = False

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield parameters and buffers by name, a shared one under each of its names."""
        for path, module in [(self.path, self.module)] if self.own else modules_of(self.module, self.path):
            for name, tensor in chain(module._parameters.items(), module._buffers.items()):
                if tensor is not None:
                    yield path + name, tensor

    @property
    def names(self) -> list[str]:
        """What a device map calls it: the module's name, or the names of its own tensors."""
        return [name for name, _ in self.tensors()] if self.own else [self.path.removesuffix(".")]


@dataclass(eq=False)
class Group:
    """Units that lie on one device. `tensors` has a tuple per tensor: all names of it in the model."""

    units: list[Unit] = field(default_factory=list)
    tensors: list[tuple[str, ...]] = field(default_factory=list)


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the repeated blocks of a model: the children of the outermost lists of modules of one class.

    A list inside a block, of experts say, belongs to the block. These are what FSDP gathers one after another.
    """
    pending = [model]
    while pending:
        module = pending.pop()
        children = [child for child in module._modules.values() if child is not None]
        repeats = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential) and len(children) > 1
        if (
            repeats
            and len(set(map(type, children))) == 1
            and all(any(True for _ in c.parameters()) for c in children)
        ):
            yield from children
        else:
            pending += reversed(children)


def kept_whole(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that are never cut: those of the classes in `_no_split_modules`, else the repeated ones."""
    named: set[str] = set()
    for module in model.modules():
        names: Any = getattr(module, "_no_split_modules", None)
        if isinstance(names, list | tuple | set | frozenset):
            named.update(names)
    told = [module for module in model.modules() if type(module).__name__ in named] if named else []
    return told or list(blocks_of(model))


def units_of(model: nn.Module) -> list[list[Unit]]:
    """Return the units of a model in the order of registration; those of one list have to lie on one device.

    A module without blocks in it is a unit: its code may compute with several of its parts at once. One with blocks is
    taken apart: its own tensors are a unit, and so is each child. Children before the first block are one list, as
    embeddings are added up.
    """
    whole = {id(block) for block in kept_whole(model)}
    if not whole and isinstance(model, nn.Sequential):
        whole = {id(child) for child in model}  # they run one after another
    parents = {
        id(module): any(id(below) in whole for below in module.modules() if below is not module)
        for module in model.modules()
        if id(module) not in whole
    }

    def walk(path: str, module: nn.Module) -> Iterator[list[Unit]]:
        if not parents.get(id(module)):
            yield list(_called_units(path, module))
            return
        yield [Unit(path, module, own=True)]
        children = [(f"{path}{name}.", child) for name, child in module._modules.items() if child is not None]
        first = next(at for at, (_, child) in enumerate(children) if id(child) in whole or parents[id(child)])
        yield [unit for below, child in children[:first] for unit in _called_units(below, child)]
        for below, child in children[first:]:
            yield from walk(below, child)

    found = ([unit for unit in each if any(True for _ in unit.tensors())] for each in walk("", model))
    return [each for each in found if each]


def is_called(module: nn.Module) -> bool:
    """Whether a module has a forward; one without, such as a list, only holds others."""
    return type(module).forward is not nn.Module.forward


def _called_units(path: str, module: nn.Module) -> Iterator[Unit]:
    """Yield a module as a unit; in the place of one without a forward, what it holds."""
    if is_called(module):
        yield Unit(path, module)
        return
    yield Unit(path, module, own=True)
    for name, child in module._modules.items():
        if child is not None:
            yield from _called_units(f"{path}{name}.", child)


def groups_of(model: nn.Module) -> list[Group]:
    """Return the units of a model as groups that lie on one device each: units that share a tensor are one group.

    In order of their first unit; but tensors that a module with blocks computes with itself, and tables without
    parameters, come first: they are wanted where the model begins.
    """
    lists = units_of(model)
    names: dict[int, list[str]] = {}
    of_list: dict[int, list[int]] = {}
    for number, units in enumerate(lists):
        for unit in units:
            for name, tensor in unit.tensors():
                names.setdefault(id(tensor), []).append(name)
                of_list.setdefault(id(tensor), []).append(number)
    joined = list(range(len(lists)))

    def root(number: int) -> int:
        while joined[number] != number:
            number = joined[number]
        return number

    for numbers in of_list.values():
        low, *others = sorted({root(number) for number in numbers})
        for other in others:
            joined[other] = low
    groups: dict[int, Group] = {}
    for number, units in enumerate(lists):
        groups.setdefault(root(number), Group()).units.extend(units)
    for key, numbers in of_list.items():
        groups[root(numbers[0])].tensors.append(tuple(dict.fromkeys(names[key])))
    made = [groups[number] for number in sorted(groups)]
    return sorted(made, key=lambda group: not _comes_first(group))


def _comes_first(group: Group) -> bool:
    return any(unit.own for unit in group.units) or not any(
        isinstance(tensor, nn.Parameter) for unit in group.units for _, tensor in unit.tensors()
    )
