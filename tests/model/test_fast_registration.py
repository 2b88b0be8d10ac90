"""The fast registration leaves the same modules as torch's own, and raises the same errors."""

from __future__ import annotations

import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from shardload.model.meta_init import construction


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.number, self.text, self.nothing, self.pair = 1, "one", None, (1, 2)
        self.weight = parameter()
        self.child = nn.Linear(2, 2)
        self.register_parameter("bias", None)
        self.register_buffer("table", torch.zeros(2), persistent=False)


class Replacing(Plain):
    """Assigns to every name a value of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.number = parameter()
        self.table = parameter()
        self.child = parameter()
        self.text = nn.Linear(2, 2)
        self.weight = parameter()
        self.add_module("text", None)
        self.pair = [3]


class Training(nn.Module):
    """Has a property where torch keeps an attribute."""

    @property
    def training(self) -> bool:
        return self.__dict__.get("_mode", False)

    @training.setter
    def training(self, value: bool) -> None:
        self.__dict__["_mode"] = value


class Other:
    def __init__(self, size: int = 3) -> None:
        self.size = size


class Both(nn.Module, Other):
    call_super_init = True


class Forwarding(nn.Module):
    """Forwards every attribute to its child, as wrappers do."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(2, 2)
        self.register_parameter("in_features", None)

    def __getattr__(self, name: str):
        if name in self.__dict__.get("_modules", ()):
            return self._modules[name]
        return getattr(super().__getattr__("child"), name)


class Noting(nn.Module):
    """Overrides register_parameter and records each name."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["heard"] = []
        self.weight = parameter()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        self.heard.append(name)
        super().register_parameter(name, param)


class WithMethod(nn.Module):
    def weight(self) -> int:
        return 1


class TooEarly(nn.Module):
    def __init__(self) -> None:
        self.weight = parameter()


class NoInit(nn.Module):
    def __init__(self) -> None:
        self.number = 1


def on(module: nn.Module, call: str, *args):
    getattr(module, call)(*args)
    return module


RECIPES = {
    "plain": Plain,
    "replacing": Replacing,
    "property": Training,
    "call_super_init": lambda: Both(size=4),
    "arguments that Module does not take": lambda: nn.Module(3),
    "forwarding": Forwarding,
    "own register_parameter": Noting,
    "before init": TooEarly,
    "without init": NoInit,
    "named like a method": lambda: on(WithMethod(), "register_parameter", "weight", parameter()),
    "set over a method": lambda: on(WithMethod(), "__setattr__", "weight", parameter()),
    "child named like a method": lambda: on(WithMethod(), "add_module", "weight", nn.ReLU()),
    "child set over a method": lambda: on(WithMethod(), "__setattr__", "weight", nn.ReLU()),
    "parameter named like a child": lambda: on(Plain(), "register_parameter", "child", parameter()),
    "parameter named like an attribute": lambda: on(Plain(), "register_parameter", "number", parameter()),
    "parameter named like a buffer": lambda: on(Plain(), "register_parameter", "table", parameter()),
    "parameter again": lambda: on(Plain(), "register_parameter", "weight", None),
    "child named like a parameter": lambda: on(Plain(), "add_module", "weight", nn.ReLU()),
    "a dot": lambda: on(Plain(), "register_parameter", "a.b", parameter()),
    "a dot in a child": lambda: on(Plain(), "add_module", "a.b", nn.ReLU()),
    "no name": lambda: on(Plain(), "register_parameter", "", None),
    "no text": lambda: on(Plain(), "add_module", 3, nn.ReLU()),
    "no parameter": lambda: on(Plain(), "register_parameter", "x", torch.zeros(2)),
    "no module": lambda: on(Plain(), "add_module", "x", 3),
    "number over a parameter": lambda: on(Plain(), "__setattr__", "weight", 3),
    "none over a parameter": lambda: on(Plain(), "__setattr__", "weight", None),
    "none over a child": lambda: on(Plain(), "__setattr__", "child", None),
    "not a leaf": lambda: on(nn.Module(), "register_parameter", "x", nn.Parameter(torch.zeros(2)).mul_(1)),
    "tables": lambda: nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ParameterList([parameter()])}),
    "recurrent": lambda: nn.LSTM(2, 2),
}


def described(make) -> object:
    """Return everything that a module holds, in order, or the error that was raised."""
    try:
        module = make()
    except Exception as error:
        return type(error), str(error)
    return contents(module)


def contents(value: object) -> object:
    if isinstance(value, nn.Module):
        return type(value).__name__, [(name, contents(held)) for name, held in value.__dict__.items()]
    if isinstance(value, torch.Tensor):
        return type(value), tuple(value.shape), value.dtype, value.requires_grad
    if isinstance(value, (dict, OrderedDict)):
        return type(value), [(name, contents(held)) for name, held in value.items()]
    if isinstance(value, list):
        return [contents(held) for held in value]
    return weakref.ref if isinstance(value, weakref.ref) else value


@pytest.mark.parametrize("name", RECIPES)
def test_a_module_is_what_torch_would_make(name):
    make = RECIPES[name]
    expected = described(make)
    with construction():
        # The second module of a class may take another path than the first.
        assert [described(make) for _ in range(3)] == [expected] * 3


def test_tables_of_two_modules_are_two():
    with construction():
        first, second, third = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    for name, value in third.__dict__.items():
        if isinstance(value, (dict, set)):
            assert value is not first.__dict__[name]
            assert value is not second.__dict__[name]


def names_heard() -> list[str]:
    heard: list[str] = []
    hooks = [
        register_module_parameter_registration_hook(lambda _module, name, _one: heard.append(name)),
        register_module_module_registration_hook(lambda _module, name, _one: heard.append(name)),
    ]
    try:
        Replacing()
    finally:
        for hook in hooks:
            hook.remove()
    return heard


def test_registration_hooks_are_called():
    expected = names_heard()
    with construction():
        assert names_heard() == expected
    assert {"weight", "child", "number", "text"} <= set(expected)


def test_somebody_elses_replacement_stays(monkeypatch):
    made: list[type] = []
    original = nn.Module.__init__

    def init(self, *args, **kwargs) -> None:
        made.append(type(self))
        original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__init__", init)
    with construction():
        nn.Linear(2, 2)
        nn.Linear(2, 2)
    assert made == [nn.Linear, nn.Linear]
    assert nn.Module.__init__ is init


def test_torchs_own_functions_come_back():
    names = ("__init__", "__setattr__", "register_parameter", "add_module")
    before = [nn.Module.__dict__[name] for name in names]
    with construction():
        assert all(nn.Module.__dict__[name] is not one for name, one in zip(names, before, strict=True))
    assert [nn.Module.__dict__[name] for name in names] == before
