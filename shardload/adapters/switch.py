"""Switch: which adapters a model runs with, by one choice for the model and others inside `with` blocks."""

from __future__ import annotations

import ctypes
import sys
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
    """The adapters to run, by name with their weights, in the order in which they are added; or one for each row.

    With `rows`, `weights` names the adapters of all rows. `thread` is the thread that made the choice.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    rows: BatchRows | None = None
    thread: int = field(default_factory=threading.get_ident)


@dataclass(eq=False)
class Switch:
    """The choice that all adapted layers of one model read, so that switching is one assignment.

    `chosen` is the model's choice. A `with` block has another one, for the code that runs inside the block alone:
    other threads and tasks keep theirs. `live` are the choices of all blocks that are open in any thread. `follow`
    (merge_on_eval) is called when a layer's mode is set.
    """

    chosen: Choice = field(default_factory=Choice)
    live: tuple[Choice, ...] = ()
    follow: Callable[..., None] | None = None

    @property
    def choice(self) -> Choice:
        """The choice for the code that asks: the innermost open block's, else the model's."""
        if not self.live:
            return self.chosen
        return scoped_choice(self) or self.chosen

    @property
    def active(self) -> Mapping[str, float]:
        """The adapters that run for the code that asks, and their weights."""
        return self.choice.weights

    def __getstate__(self) -> tuple[Choice, Any]:
        # A copy is in no open block: the choice for the code that copies becomes its own.
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
        # Autograd recomputes a checkpointed layer in another thread (on a GPU, or deep in other recomputations).
        # That thread has no context variables; torch carries this object over from the thread that called backward().
        thread, scopes = torch._C._get_obj_in_tls(_KEY)
        if thread != threading.get_ident():
            choice = scopes.get(switch)
    return choice


def open_scope(switch: Switch, choice: Choice) -> Mapping[Switch, Choice]:
    """Make a choice for the code that follows in this thread or task; return what `close_scope` needs."""
    before = _SCOPES.get()
    with LOCK:
        switch.live = (*switch.live, choice)
    _set_scopes({**before, switch: choice})
    return before


def close_scope(switch: Switch, choice: Choice, before: Mapping[Switch, Choice]) -> None:
    """End a block's choice."""
    with LOCK:
        switch.live = tuple(other for other in switch.live if other is not choice)
    _set_scopes(before)


def _set_scopes(scopes: Mapping[Switch, Choice]) -> None:
    _SCOPES.set(scopes)
    _stash((threading.get_ident(), scopes))


def _stash(mark: tuple[int, Mapping[Switch, Choice]]) -> None:
    """Have torch point to `mark` in this thread, in place of what it points to, with a reference of its own."""
    # torch 2.10 and 2.11 take none, and give one back when they let go of the object. So torch gets one first, which is
    # taken back where it turns out to take its own: an interrupt in between leaves one too many, never one too few.
    own, before = ctypes.py_object(mark), sys.getrefcount(mark)
    ctypes.pythonapi.Py_IncRef(own)
    torch._C._stash_obj_in_tls(_KEY, mark)
    if sys.getrefcount(mark) > before + 1:
        ctypes.pythonapi.Py_DecRef(own)


_SCOPES: ContextVar[Mapping[Switch, Choice]] = ContextVar("shardload_adapters", default=MappingProxyType({}))
_KEY: Any = "shardload_adapters"
