"""The model that shardload has filled, for a class whose own `from_pretrained` asks the base's for it."""

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
    """A filled model, and what the base's `from_pretrained` says of its keys where it is asked."""

    model: nn.Module
    loading_info: dict[str, list[Any]]
    asked: bool = False


@contextlib.contextmanager
def offered(model: nn.Module, loading_info: dict[str, list[Any]]) -> Iterator[Filled]:
    """Let the base's `from_pretrained` give this model inside the block; what is yielded says whether it was asked."""
    filled = Filled(model, loading_info)
    before = _current.set(filled)
    try:
        yield filled
    finally:
        _current.reset(before)


def taken(cls: type[Any], *, with_info: bool) -> Any:
    """Return the model that is offered to this class, with the keys' fate if that is wanted; None without one."""
    filled = _current.get()
    if filled is None or type(filled.model) is not cls:
        return None
    filled.asked = True
    return (filled.model, filled.loading_info) if with_info else filled.model
