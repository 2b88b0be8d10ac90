"""What the functions of a repo take: code of different ages has different parameters."""

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
    """Return those of the keyword arguments that a function takes."""
    if takes_any(function):
        return keywords
    names = parameters(function)
    return {name: value for name, value in keywords.items() if name in names}
