"""The model that shardload has filled, for a class whose own `from_pretrained` calls its base class's."""

from __future__ import annotations

import contextlib
import contextvars
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_current: contextvars.ContextVar[Filled | None] = contextvars.ContextVar("filled", default=None)


@dataclass
class Filled:
    """A filled model, and the loading info that the base class's `from_pretrained` returns for it."""

    model: nn.Module
    loading_info: dict[str, list[Any]]
    asked: bool = False


@contextlib.contextmanager
def offered(model: nn.Module, loading_info: dict[str, list[Any]]) -> Iterator[Filled]:
    """Let the base class's `from_pretrained` return this model inside the block; `asked` says whether it was called."""
    filled = Filled(model, loading_info)
    before = _current.set(filled)
    try:
        yield filled
    finally:
        _current.reset(before)


def taken(cls: type[Any], *, with_info: bool) -> Any:
    """Return the model that is offered to this class, with its loading info where wanted; None without one."""
    filled = _current.get()
    if filled is None or type(filled.model) is not cls:
        return None
    filled.asked = True
    return (filled.model, filled.loading_info) if with_info else filled.model
