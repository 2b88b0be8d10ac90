"""A process that has ended is known to have, and no other one is."""

from __future__ import annotations

import subprocess
import sys
from ast import literal_eval

import pytest

from shardload._system import presence
from shardload._system.presence import Watch, announce

CHILD = """
from shardload._system import presence
class Printed:
    host, port = "127.0.0.1", 9
    def set(self, key, value):
        print(repr((key, value)), flush=True)
presence.announce(Printed(), 1)
input()
"""


class Store:
    """What a TCPStore does for presence."""

    host, port = "127.0.0.1", 9

    def __init__(self, values=None):
        self.values = dict(values or {})

    def check(self, keys):
        return all(key in self.values for key in keys)

    def get(self, key):
        return self.values[key].encode()

    def set(self, key, value):
        self.values[key] = value


@pytest.fixture
def other():
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    key, value = literal_eval(process.stdout.readline())
    yield process, Store({key: value})
    process.kill()
    process.communicate()


def killed(process):
    process.kill()
    process.wait()


def test_a_process_that_is_killed_is_known_to_have_ended(other):
    process, store = other
    early, late = Watch(store, 1), Watch(store, 1)
    assert not early.has_ended()
    assert not early.has_ended()
    killed(process)
    assert early.has_ended()
    assert late.has_ended()  # it asks for the first time now
    for watch in (early, late):
        watch.close()
        assert not watch.has_ended()


def test_another_host_may_only_refuse_to_be_reached(other):
    process, store = other
    host, place = store.values["present/1"].split("\n", 1)
    killed(process)
    watch = Watch(Store({"present/1": f"not {host}\n{place}"}), 1)
    assert not watch.has_ended()
    assert not watch.has_ended()


def test_nothing_is_concluded_of_a_rank_that_has_not_announced_itself():
    assert not Watch(Store(), 1).has_ended()


def test_another_host_that_was_reached_is_known_to_have_ended(other, monkeypatch):
    monkeypatch.setattr(presence, "_LOOPBACK", "")  # this test's other host is on loopback too
    process, store = other
    host, place = store.values["present/1"].split("\n", 1)
    watch = Watch(Store({"present/1": f"not {host}\n{place}"}), 1)
    assert not watch.has_ended()
    killed(process)
    assert watch.has_ended()
    watch.close()


def test_a_store_without_an_address_shows_ranks_of_one_host_to_one_another():
    store = Store()
    store.host = None
    announce(store, 0)
    host, address, port = store.values["present/0"].split("\n")
    assert address == "127.0.0.1"
    watch = Watch(store, 0)
    assert not watch.has_ended()
    assert watch._socket is not None
    watch.close()
    other = Watch(Store({"present/0": f"not {host}\n{address}\n{port}"}), 0)
    assert not other.has_ended()
    assert other._socket is None  # whoever listens there is another process


def test_many_loads_leave_room_for_more():
    store = Store()
    held = Watch(store, 0)
    for _ in range(3 * presence._WAITING):
        announce(store, 0)
        assert not held.has_ended()  # connected from the first turn on
        watch = Watch(store, 0)
        assert not watch.has_ended()
        watch.close()
    announce(store, 0)
    assert len(presence._ACCEPTED) == 1
    held.close()
    for each in (*presence._ACCEPTED, *presence._LISTENING.values()):
        each.close()
    presence._ACCEPTED.clear(), presence._LISTENING.clear()
