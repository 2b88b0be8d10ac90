"""PickleMachine against the standard library's pickle: the same plain data, and nothing else."""

from __future__ import annotations

import pickle
import random
import string

import pytest

from shardload.checkpoint.formats import pickle_machine
from shardload.checkpoint.formats.pickle_machine import EndOfDataError, PickleMachine
from shardload.errors import CorruptError, UnsupportedError

from .opcodes import text

PROTO = b"\x80\x02"


def plain(rng: random.Random, depth: int = 4):
    """Return random plain data of the kinds that protocol 2 writes without a global."""
    kind = rng.randrange(11 if depth else 7)
    if kind < 3:
        return rng.choice([0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**63, -(2**100), 10**30])
    if kind == 3:
        return rng.choice([None, True, False])
    if kind == 4:
        return rng.uniform(-1e300, 1e300)
    if kind < 7:
        return "".join(rng.choices(string.ascii_letters + "üλ\U0001f600", k=rng.randrange(300)))
    if kind == 7:
        return tuple(plain(rng, depth - 1) for _ in range(rng.randrange(6)))
    if kind == 8:
        return [plain(rng, depth - 1) for _ in range(rng.randrange(6))]
    keys = rng.sample(string.ascii_letters, rng.randrange(6))
    return {key: plain(rng, depth - 1) for key in keys}


@pytest.mark.parametrize("seed", range(30))
def test_plain_data_is_read_as_pickle_reads_it(seed):
    rng = random.Random(seed)
    shared = [
        plain(rng) for _ in range(300 if seed % 3 == 0 else 3)
    ]  # more than 256 memo entries take BINGET4
    value = [shared, shared, {"again": shared}]
    data = pickle.dumps(value, 2)
    machine = PickleMachine(data, "model.bin")
    made = machine.load()
    assert made == value == pickle.loads(data)
    assert made[0] is made[1] is made[2]["again"]
    assert machine.position == len(data)


def test_it_begins_where_it_is_told_and_stops_at_the_stop():
    first, second = pickle.dumps({"a": 1}, 2), pickle.dumps([2], 2)
    data = first + second + b"storages"
    machine = PickleMachine(data, "model.bin")
    assert machine.load() == {"a": 1}
    other = PickleMachine(data, "model.bin", machine.position)
    assert other.load() == [2]
    assert other.position == len(first + second)


@pytest.mark.parametrize("value", [{"a": 1.5, "b": ["text" * 2000, 2**80]}, ("x", (None, 70_000))])
def test_every_cut_is_the_end_of_the_data(value):
    data = pickle.dumps(value, 2)
    for length in range(len(data)):
        with pytest.raises(EndOfDataError):
            PickleMachine(data[:length], "model.bin").load()


@pytest.mark.parametrize("name", ["print", "OrderedDict"])
def test_it_can_name_nothing(name):
    body = b"c" + b"builtins\n" + name.encode() + b"\n."
    with pytest.raises(CorruptError, match="0x63 is not an opcode") as caught:
        PickleMachine(PROTO + body, "model.bin").load()
    assert caught.value.where == "model.bin, byte 3"


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_are_named(protocol):
    with pytest.raises(UnsupportedError, match=f"protocol {protocol}"):
        PickleMachine(pickle.dumps({}, protocol), "model.bin").load()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"}" + text("a") + b"Ns" + text("a") + b"Ns.", "the same key twice"),
        (b"}]Ns.", "a list can't be a dict key"),
        (b"]q\x05.", "memo index 5 after 0"),
        (b"]h\x00.", "stack or the memo"),
        (b"a.", "stack or the memo"),
        (b"))a.", "APPEND to what is no list"),
        (b"}(Nu.", "a key and no value"),
        (b"X\x02\x00\x00\x00\xff\xfe.", "not UTF-8"),
    ],
)
def test_what_no_pickler_writes_is_corrupt(body, message):
    with pytest.raises(CorruptError, match=message) as caught:
        PickleMachine(PROTO + body + b"." * 8, "model.bin").load()
    assert caught.value.where.startswith("model.bin, byte ")


def test_a_memo_that_begins_at_1_is_that_of_python_2():
    assert PickleMachine(PROTO + b"]q\x01h\x01\x86.", "model.bin").load() == ([], [])


# Each opcode below makes objects that take more memory than its own bytes; 1,000 of them do not fit into 10,000.
@pytest.mark.parametrize("opcode", [b"(", b"]", b"}", b")", b"J\0\0\0\1", b"G" + bytes(8), b"U\x01a", b"N"])
def test_every_opcode_is_charged_before_the_memory_is_taken(monkeypatch, opcode):
    monkeypatch.setattr(pickle_machine, "MAX_OBJECT_BYTES", 10_000 + 1000 * len(opcode))
    with pytest.raises(UnsupportedError, match="MB of objects"):
        PickleMachine(PROTO + opcode * 1000, "model.bin").load()
    few = PickleMachine(PROTO + opcode * 10, "model.bin")
    with pytest.raises(EndOfDataError):
        few.load()


def test_a_wide_character_makes_a_text_cost_four_bytes_a_character(monkeypatch):
    monkeypatch.setattr(pickle_machine, "MAX_OBJECT_BYTES", 12_000)
    narrow, wide = text("a" * 4000), text("a" * 3996 + "\U0001f600")
    assert len(PickleMachine(PROTO + narrow + b"\x85.", "model.bin").load()[0]) == 4000
    with pytest.raises(UnsupportedError):
        PickleMachine(PROTO + wide + b"\x85.", "model.bin").load()
