"""Which adapters a model runs with: one choice for the model, others inside `with` blocks of one thread."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardload.adapters.batch_rows import BatchRows


@dataclass(frozen=True, eq=False)
class Choice:
    """Adapters by name with their weights, in the order in which they are added; or a row of the batch each.

    With `rows`, `weights` names the adapters that some row wants. `thread` is the one that chose it.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    rows: BatchRows | None = None
    thread: int = field(default_factory=threading.get_ident)


@dataclass(eq=False)
class Switch:
    """The choice that all adapted layers of one model look at, so that switching is one assignment.

    `chosen` holds for the model. A `with` block puts another choice before it, for the code that runs inside the block
    alone: other threads and tasks see what they saw. `live` are the choices of all blocks that are open anywhere.
    `follow` is called when a layer's `training` is set, where somebody asked for that.
    """

    chosen: Choice = field(default_factory=Choice)
    live: tuple[Choice, ...] = ()
    follow: Callable[..., None] | None = None

    @property
    def choice(self) -> Choice:
        """What holds where this is asked: the innermost block's choice, else the model's."""
        if not self.live:
            return self.chosen
        return scoped_choice(self) or self.chosen

    @property
    def active(self) -> Mapping[str, float]:
        """The adapters that run where this is asked, and their weights."""
        return self.choice.weights

    def __getstate__(self) -> tuple[Choice, Any]:
        # A copy is not inside anybody's block: it begins with what holds where it is made.
        choice = self.choice
        return (self.chosen if choice.rows is not None else Choice(dict(choice.weights))), self.follow

    def __setstate__(self, state: tuple[Choice, Any]) -> None:
        self.chosen, self.follow = state
        self.live = ()


LOCK = threading.RLock()
"""Held while a choice or an adapter is changed, on whatever model; running a model never takes it."""


def scoped_choice(switch: Switch) -> Choice | None:
    """Return the choice of the innermost open block that this code runs in, or None."""
    choice = _SCOPES.get().get(switch)
    if choice is None and torch._C._current_graph_task_id() != -1 and torch._C._is_key_in_tls(_KEY):
        # Autograd recomputes a checkpointed layer in a thread of its own (on a GPU, or deep in other recomputations).
        # It has no context variables; what torch carries from the thread that called backward() is this.
        thread, scopes = torch._C._get_obj_in_tls(_KEY)
        if thread != threading.get_ident():
            choice = scopes.get(switch)
    return choice


def open_scope(switch: Switch, choice: Choice) -> Mapping[Switch, Choice]:
    """Put a choice before the model's for the code that follows in this thread or task; return what to close with."""
    before = _SCOPES.get()
    with LOCK:
        switch.live = (*switch.live, choice)
    _set_scopes({**before, switch: choice})
    return before


def close_scope(switch: Switch, choice: Choice, before: Mapping[Switch, Choice]) -> None:
    """Take a block's choice back."""
    with LOCK:
        switch.live = tuple(other for other in switch.live if other is not choice)
    _set_scopes(before)


def _set_scopes(scopes: Mapping[Switch, Choice]) -> None:
    _SCOPES.set(scopes)
    torch._C._stash_obj_in_tls(_KEY, (threading.get_ident(), scopes))


_SCOPES: ContextVar[Mapping[Switch, Choice]] = ContextVar("shardload_adapters", default=MappingProxyType({}))
_KEY: Any = "shardload_adapters"
