"""Puts torch's default dtype back after code that sets it. It is one for all threads of a process."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

SETTERS = frozenset({"set_default_dtype", "set_default_tensor_type"})

DTYPE_BEFORE: dict[object, torch.dtype] = {}
"""For each block of code that may set the default dtype, what it was before the oldest block that overlaps it.

A plain dict and no lock, which a fork could leave held for ever.
"""

os.register_at_fork(after_in_child=DTYPE_BEFORE.clear)


def put_back_if_set(before: torch.dtype, make: Any, made: Any, traceback: TracebackType | None) -> None:
    """Set the default dtype to `before`, where the constructor that has just ended is what changed it.

    Another thread may set it for a while, for reasons of its own; so it is left alone unless code that ran sets it:
    that of `make`, of the classes of the model `made`, or of a frame in which the constructor failed.
    """
    kinds = {type(module) for module in made.modules()} if isinstance(made, nn.Module) else ()
    suspects = [make, *dict.fromkeys(base for kind in kinds for base in kind.__mro__)]
    if _sets_it(suspects) or _passed_a_setter(traceback):
        torch.set_default_dtype(before)


def sets_default_dtype(source: str) -> bool:
    """Whether the source of a module names a function that sets the default dtype."""
    return any(name in source for name in SETTERS)


def _sets_it(suspects: Iterable[Any]) -> bool:
    """Whether a suspect, or a function or class that it names, names a function that sets the default dtype."""
    pending, seen = list(suspects), set()
    while pending:
        one = pending.pop()
        one = getattr(one, "func", one) if isinstance(one, partial) else one
        if id(one) in seen or _is_of_a_library(one):
            continue
        seen.add(id(one))
        if isinstance(one, type):
            pending += [getattr(value, "__func__", value) for value in vars(one).values()]
        elif isinstance(one, FunctionType):
            codes = list(_nested(one.__code__))
            if any(not SETTERS.isdisjoint(code.co_names) for code in codes):
                return True
            names = [name for code in codes for name in code.co_names]
            named = [*(one.__globals__.get(name) for name in names), *_closed_over(one)]
            pending += named
            pending += [
                vars(each).get(name) for each in named if isinstance(each, ModuleType) for name in names
            ]
            pending += [one.__wrapped__] if hasattr(one, "__wrapped__") else []
    return False


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell that is still empty
            yield cell.cell_contents


def _passed_a_setter(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if not SETTERS.isdisjoint(traceback.tb_frame.f_code.co_names):
            return True
        traceback = traceback.tb_next
    return False


def _is_of_a_library(thing: Any) -> bool:
    """Whether a function or class is of an installed package, which puts back what it sets."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    return "site-packages" in str(getattr(module, "__file__", "")) or module is None
