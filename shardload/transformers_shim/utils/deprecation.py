"""`transformers.utils.deprecation`: arguments that were renamed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def deprecate_kwarg(
    old_name: str, version: str = "", new_name: str | None = None, **_options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that passes an argument's old name on as its new name, if there is one."""
    del version

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def renamed(*args: Any, **kwargs: Any) -> Any:
            if new_name is not None and old_name in kwargs:
                kwargs.setdefault(new_name, kwargs.pop(old_name))
            return function(*args, **kwargs)

        return renamed

    return decorate
