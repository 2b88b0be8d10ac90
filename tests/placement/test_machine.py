"""The machine's own way to a GPU, with a double of the copies: what is fetched arrives whole."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch

from shardload.placement.machine import Machine
from shardload.placement.pinned_ring import PinnedRing
from tests.placement.test_pinned_ring import LateCopies

GPU = torch.device("cuda", 0)  # no tensor is made on it


def machine_with(copies: LateCopies) -> Machine:
    machine = Machine()
    machine._rings[GPU] = PinnedRing(copies, buffer_bytes=64)
    return machine


def test_what_is_fetched_to_a_gpu_comes_through_the_ring_and_is_whole():
    copies = LateCopies()
    machine = machine_with(copies)
    for _ in range(2):
        sources = [
            torch.randn(7, 5),
            torch.randn(3, 40).t(),
            torch.arange(5),
            torch.ones(()),
            torch.empty(0, 3),
        ]
        sources[0].requires_grad_()
        here = machine.fetch(sources, GPU)()
        assert all(map(torch.equal, here, sources))
        assert not any(each.requires_grad for each in here)
        assert not {each.data_ptr() for each in here if each.numel()} & {each.data_ptr() for each in sources}
    assert copies.copies == 2 * sum(-(-each.nbytes // 64) for each in sources)
    assert sum("shardload-fetch" in thread.name for thread in threading.enumerate()) == 1
    machine._pool.shutdown()
    machine._rings[GPU].close()


def test_what_fails_on_the_device_is_raised_by_who_waits_for_it():
    machine = machine_with(LateCopies(fails_at=1))
    fetched = machine.fetch([torch.randn(100)], GPU)
    with pytest.raises(RuntimeError, match="the device is lost"):
        fetched()
    source = torch.randn(100)
    assert torch.equal(machine.fetch([source], GPU)()[0], source)  # the error is not raised again
    machine._pool.shutdown()
    machine._rings[GPU].close()


def test_a_copy_of_a_machine_has_no_threads_and_no_buffers():
    machine = machine_with(LateCopies())
    machine.fetch([torch.ones(2)], GPU)()
    copy = pickle.loads(pickle.dumps(machine))
    assert (copy._pool, copy._rings) == (None, {})
    machine._pool.shutdown()
    machine._rings[GPU].close()


def test_a_processor_fetches_at_once_and_names_its_places():
    machine = Machine()
    source = torch.randn(3)
    (here,) = machine.fetch([source], torch.device("cpu"))()
    assert torch.equal(here, source)
    assert [machine.device(place) for place in ("cpu", "disk", 1)] == [
        torch.device("cpu"), torch.device("cpu"), torch.device("cuda", 1),
    ]  # fmt: skip
    assert machine.free()["cpu"] > 0
