"""The collector is off while headers are read, and on again afterwards."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import pytest

from shardload._system.gc_pause import gc_paused


def test_off_inside_and_on_again():
    assert gc.isenabled()
    with gc_paused():
        assert not gc.isenabled()
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_on_again_after_an_error():
    with pytest.raises(ValueError), gc_paused():
        raise ValueError
    assert gc.isenabled()


def test_left_off_where_it_was_off():
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_last_thread_turns_it_on():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with gc_paused():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with gc_paused():
        thread.start()
        assert entered.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


class Cycle:
    def __init__(self) -> None:
        self.own = self


def test_what_was_made_meanwhile_is_old_and_is_collected_with_the_old():
    gc.collect()
    with gc_paused():
        garbage = weakref.ref(Cycle())
    if sys.version_info < (3, 14):  # later versions collect a part of the old generation each time
        gc.collect(1)
        assert garbage() is not None
    gc.collect()
    assert garbage() is None


def test_objects_that_somebody_froze_stay_frozen():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with gc_paused():
            pass
        assert gc.get_freeze_count() >= frozen - 100
    finally:
        gc.unfreeze()
