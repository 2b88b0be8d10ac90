"""What is written is what pickle reads, and no class is imported to write it."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from fractions import Fraction

import pytest

from shardload.writing.pickle_writer import Call, Name, Object, Outside, pickled

DATA = [
    None,
    True,
    False,
    0,
    255,
    256,
    -1,
    2**31,
    -(2**31),
    2**40,
    -(2**70),
    "é" * 300,
    "",
    (),
    (1, (2, "x")),
    [],
    {},
]


@pytest.mark.parametrize(
    "value", [*DATA, DATA, {"a": [1], "b": {2: (3,)}}], ids=lambda value: repr(value)[:20]
)
def test_plain_data_comes_back(value):
    assert pickle.loads(pickled(value)) == value


def test_calls_and_objects_are_made_by_the_reader():
    half = Call(Name("fractions", "Fraction"), (1, 2))
    empty = Call(Name("collections", "OrderedDict"), ())
    assert pickle.loads(pickled([half, half, empty])) == [Fraction(1, 2), Fraction(1, 2), OrderedDict()]
    made = pickle.loads(pickled(Object(Name("types", "SimpleNamespace"), {"a": 1})))
    assert vars(made) == {"a": 1}


def test_what_lies_outside_is_found_by_its_key():
    class Reader(pickle.Unpickler):
        def persistent_load(self, key):
            return key

    raw = pickled((Outside(("storage", Name("builtins", "int"), "0")),))
    assert Reader(io.BytesIO(raw)).load() == (("storage", int, "0"),)


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="a set is no plain data"):
        pickled({1: set()})
