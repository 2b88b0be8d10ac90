"""Why a caller's own class can't be called with the config: imported where such a call has failed."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from shardload.errors import UsageError, Wording, keyword

if TYPE_CHECKING:
    from collections.abc import Callable


def refused_config(model_class: Callable[[Any], Any], config: Any, error: TypeError) -> UsageError | None:
    """Return the error of a class that takes no config, or takes it for another argument; None for any other.

    The second is shown by the error's text: it names the config's class, and the parameter is not called a config.
    """
    try:
        signature = inspect.signature(model_class)
    except (TypeError, ValueError):
        return None  # a class written in C shows no signature
    name = getattr(model_class, "__qualname__", type(model_class).__qualname__)
    first = next(iter(signature.parameters), "")
    try:
        signature.bind(config)
    except TypeError as unbound:
        what = f"{name}{signature} can't be called with the config alone: {unbound}"
    else:
        if "config" in first or "cfg" in first or type(config).__name__ not in str(error):
            return None
        what = f"{name} took the config for its {first!r}: {error}"
    return UsageError(
        what,
        where=keyword("model_class"),
        cure=Wording(
            "pass {model_class} with a function that takes the config: make = lambda config: {0}(…)",
            name,
            model_class=...,
        ),
    )
