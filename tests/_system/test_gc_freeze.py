"""The collector stays on while many objects are made, and passes over those that are older."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest

from shardload._system.gc_freeze import freeze_more, gc_frozen


@gc_frozen
def state() -> tuple[bool, bool]:
    return gc.isenabled(), gc.get_freeze_count() > 0


@gc_frozen
def failing() -> None:
    raise ValueError


class Cycle:
    def __init__(self) -> None:
        self.own = self


def test_what_is_old_is_frozen_and_the_collector_is_on():
    assert state() == (True, True)
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()


def test_nothing_stays_frozen_after_an_error():
    with pytest.raises(ValueError):
        failing()
    assert gc.get_freeze_count() == 0


def test_garbage_that_is_made_meanwhile_is_collected():
    @gc_frozen
    def collected() -> bool:
        garbage = weakref.ref(Cycle())
        gc.collect()
        return garbage() is None

    assert collected()


def test_a_call_inside_another_leaves_the_outer_one_frozen():
    @gc_frozen
    def outer() -> bool:
        state()
        return gc.get_freeze_count() > 0

    assert outer()
    assert gc.get_freeze_count() == 0


def test_freeze_more_takes_what_was_made_so_far():
    @gc_frozen
    def grown() -> int:
        before = gc.get_freeze_count()
        kept = [[] for _ in range(1000)]
        freeze_more()
        return gc.get_freeze_count() - before - len(kept)

    assert grown() >= 0
    freeze_more()
    assert gc.get_freeze_count() == 0, "outside of a call nothing is frozen"


def test_objects_that_somebody_froze_stay_frozen():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        state()
        assert gc.get_freeze_count() >= frozen - 100
    finally:
        gc.unfreeze()


def test_a_child_that_is_forked_meanwhile_has_nothing_frozen():
    inside, leave = threading.Event(), threading.Event()

    @gc_frozen
    def wait() -> None:
        inside.set()
        leave.wait(120)

    thread = threading.Thread(target=wait)
    thread.start()
    assert inside.wait(120)
    child = os.fork()
    if child == 0:
        os._exit(gc.get_freeze_count() > 0 or not gc.isenabled() or state() != (True, True))
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    thread.join()
