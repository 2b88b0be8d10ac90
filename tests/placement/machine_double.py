"""A machine whose accelerators are the processor's memory under other names, and which is as strict as a real one.

Every tensor that a copy to device 0 made is tagged, and so is what is computed from it. An operation on tensors of two
devices raises as torch does on real ones. Copies arrive when they are waited for, and hold NaN until then.
"""

from __future__ import annotations

import weakref
from weakref import WeakKeyDictionary

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shardload import OnDevice, OnDevices, build_shell, fill, open_checkpoint
from shardload.placement.machine import Machine
from shardload.placement.pinned_ring import PinnedRing
from tests.placement.test_pinned_ring import LateCopies
from tests.tiny import Net

ANYWHERE = "anywhere"


class Double(Machine):
    """Accelerators 0, 1, … Computations have to run inside `strict()`."""

    def __init__(self, free: dict | None = None) -> None:
        super().__init__()
        self._free = free or {}
        self.tags: WeakKeyDictionary = WeakKeyDictionary()
        self.moving = False
        self.moves = self.fetches = self.waiting = self.most_waiting = 0
        self.fetched: list[weakref.ref] = []

    def __reduce__(self):
        return type(self), (self._free,)

    def free(self):
        return self._free

    def device(self, place):
        return "cpu" if place in ("cpu", "disk") else f"double:{place}"

    def where(self, tensor):
        return self.tags.get(tensor.untyped_storage(), "cpu")

    def tag(self, tensor, device):
        if device != "cpu":
            self.tags[tensor.untyped_storage()] = device
        return tensor

    def target(self, place, dtype):
        target = _OnDouble(self, self.device(place), dtype)
        target._ring = PinnedRing(TaggedCopies(self, self.device(place)), buffer_bytes=512)
        return target

    def moved(self, tensor, device):
        self.moves += 1
        return _Moved.apply(tensor, self, device)

    def fetch(self, tensors, device):
        self.fetches += 1
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        with torch.no_grad():
            here = [self.tag(torch.empty_like(tensor), device) for tensor in tensors]
            for each in here:
                each.fill_(float("nan") if each.is_floating_point() else 0)

        self.fetched += map(weakref.ref, here)

        def arrive():
            self.waiting -= 1
            with torch.no_grad(), self.copying():
                for source, result in zip(tensors, here, strict=True):
                    result.copy_(source)
            return here

        return arrive

    def held(self) -> int:
        """Return how many fetched tensors there are still."""
        return sum(each() is not None for each in self.fetched)

    def copying(self):
        return _Copying(self)

    def strict(self):
        return _Strict(self)


class _OnDouble(OnDevice):
    def __init__(self, machine, device, dtype):
        super().__init__("cpu", dtype)
        self.own = machine, device

    def place(self, key, stored):
        machine, device = self.own
        return machine.moved(super().place(key, stored).detach(), device)


class TaggedCopies(LateCopies):
    def __init__(self, machine: Double, device: str) -> None:
        super().__init__()
        self.machine, self.device = machine, device

    def empty(self, shape, dtype):
        return self.machine.tag(super().empty(shape, dtype), self.device)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, machine, device):
        ctx.machine, ctx.home = machine, machine.where(tensor)
        with machine.copying():
            copy = tensor.clone()
        machine.tags.pop(copy.untyped_storage(), None)
        return machine.tag(copy, device)

    @staticmethod
    def backward(ctx, gradient):
        return _Moved.apply(gradient, ctx.machine, ctx.home), None, None


class _Copying:
    def __init__(self, machine):
        self.machine = machine

    def __enter__(self):
        self.before, self.machine.moving = self.machine.moving, True

    def __exit__(self, *_):
        self.machine.moving = self.before


class _Strict(TorchDispatchMode):
    def __init__(self, machine: Double) -> None:
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        machine = self.machine
        result = func(*args, **(kwargs or {}))
        if machine.moving or func is torch.ops.aten.copy_.default:
            return result  # the one operation that torch does over devices
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        devices = {machine.where(each) for each in given} - {ANYWHERE}
        if len(devices) > 1:
            devices = {machine.where(each) for each in given if each.dim() or machine.where(each) != "cpu"}
            devices -= {ANYWHERE}
        if len(devices) > 1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} got {sorted(devices)}"
            )
        if func is torch.ops.aten.lift_fresh.default:
            return machine.tag(result, ANYWHERE)  # torch.tensor(…, device=x.device), say
        inputs = {id(each.untyped_storage()) for each in given}
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and id(each.untyped_storage()) not in inputs:
                machine.tag(each, next(iter(devices), ANYWHERE))  # zeros(…, device=x.device), say
        return result


def on_double(wanted, max_memory=None, *, free=None, **options) -> OnDevices:
    target = OnDevices(wanted, max_memory, **options)
    target.machine = Double(free)
    return target


class Plain(Net):
    """Net without plain tensor attributes, which no loader moves to another device."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        for layer in self.layers:
            layer.slopes = 0.25


def loaded(folder, wanted, make=Plain, max_memory=None, **options):
    target = on_double(wanted, max_memory, **options)
    shell = build_shell(make)
    report = fill(shell, open_checkpoint(folder), target=target)
    return shell.model.eval(), target.machine, report


IDS = torch.tensor([[1, 4, 2], [0, 3, 11]])


OFFLOADED = {"": 0, "layers": "cpu", "layers.2": "disk"}
