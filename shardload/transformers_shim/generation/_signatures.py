"""The parameters of a repo's functions: code of different ages has different ones."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def parameters(function: Callable[..., Any]) -> set[str]:
    """Return the names of a function's parameters, `**kwargs` by its own name."""
    return set(inspect.signature(function).parameters)


def takes_any(function: Callable[..., Any]) -> bool:
    """Return whether a function takes keyword arguments that it does not name."""
    kinds = (p.kind for p in inspect.signature(function).parameters.values())
    return inspect.Parameter.VAR_KEYWORD in kinds


def accepted(function: Callable[..., Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that a function takes."""
    if takes_any(function):
        return keywords
    names = parameters(function)
    return {name: value for name, value in keywords.items() if name in names}


def knows(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has a parameter of that name, or takes any and asks for this one.

    It asks where it looks the name up, or where it calls another function of its own name, which may do so.
    """
    if name in parameters(function):
        return True
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (
        takes_any(function) and code is not None and (name in code.co_consts or code.co_name in code.co_names)
    )
