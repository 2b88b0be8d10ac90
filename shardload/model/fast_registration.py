"""Registers attributes, parameters and children of modules faster than torch does.

torch makes several checks for each attribute, some by a metaclass in Python, and catches an exception to learn that a
name is free. The fast functions below handle the ordinary case and call torch's function for every other case. They
replace torch's methods while a shell is built: the constructors of 46,000 Linears take 0.65 s of CPU time with them and
0.87 s without (the best of six runs).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

Function = Callable[..., Any]

_PLAIN = frozenset({int, float, bool, str, type(None), tuple, torch.dtype})


def quick_ways() -> dict[str, Function]:
    """Return fast replacements of methods of nn.Module, by name; a method that other code has patched gets none."""
    makers = {
        "__init__": _init,
        "__setattr__": _set_attribute,
        "register_parameter": _register_parameter,
        "add_module": _add_module,
    }
    own = {name: getattr(nn.Module, name) for name in makers}
    return {
        name: functools.wraps(own[name])(make(own[name]))
        for name, make in makers.items()
        if getattr(own[name], "__globals__", None) is vars(torch_module)
    }


def _init(original: Function) -> Function:
    """Make an `__init__` that copies the empty tables of a fresh module."""
    fresh = nn.Module.__new__(nn.Module)
    original(fresh)
    template = dict(fresh.__dict__)
    own_containers = [
        (name, type(value)) for name, value in template.items() if isinstance(value, (dict, set))
    ]
    known: dict[type, bool] = {}

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if args or kwargs or not known.get(type(self)):
            original(self, *args, **kwargs)
            # A class may define one of the names as a property, or want the __init__ of its other bases called.
            known[type(self)] = not self.call_super_init and not any(
                hasattr(type(self), name) for name in template if name not in vars(nn.Module)
            )
            return
        own = self.__dict__
        own.update(template)
        for name, make in own_containers:
            own[name] = make()

    return init


def _set_attribute(original: Function) -> Function:
    """Make a `__setattr__` for plain values and new parameters whose name is in no other table of the module."""
    plainly = object.__setattr__

    def set_attribute(self: nn.Module, name: str, value: Any) -> None:
        kind, own = type(value), self.__dict__
        if kind in _PLAIN:
            if (
                name not in own.get("_parameters", ())
                and name not in own.get("_buffers", ())
                and name not in own.get("_modules", ())
            ):
                plainly(self, name, value)
                return
        elif (
            kind is nn.Parameter
            and "_modules" in own
            and name not in own
            and name not in own["_buffers"]
            and name not in own["_modules"]
        ):
            self.register_parameter(name, value)
            return
        original(self, name, value)

    return set_attribute


def _register_parameter(original: Function) -> Function:
    hooks = torch_module._global_parameter_registration_hooks

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if (
            (param is None or (type(param) is nn.Parameter and param.grad_fn is None))
            and not hooks
            and _is_good(self, name)
        ):
            self.__dict__["_parameters"][name] = param
        else:
            original(self, name, param)

    return register_parameter


def _add_module(original: Function) -> Function:
    hooks = torch_module._global_module_registration_hooks

    def add_module(self: nn.Module, name: str, module: nn.Module | None) -> None:
        if isinstance(module, nn.Module) and not hooks and _is_good(self, name):
            self.__dict__["_modules"][name] = module
        else:
            original(self, name, module)

    return add_module


def _is_good(module: nn.Module, name: str) -> bool:
    """Whether torch would accept the name without a question: a text without a dot that no attribute has yet."""
    own = module.__dict__
    return (
        type(name) is str
        and name != ""
        and "." not in name
        and "_modules" in own
        and name not in own
        and name not in own["_parameters"]
        and name not in own["_buffers"]
        and name not in own["_modules"]
        and type(module).__getattr__ is _getattr
        and not hasattr(type(module), name)
    )


_getattr = nn.Module.__getattr__
