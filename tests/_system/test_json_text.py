"""Untrusted JSON: what Python's own parser reads, and a reason for everything else."""

from __future__ import annotations

import json
import math

import pytest

from shardload._system.json_text import JsonTooLargeError, NoJsonError, parse_json
from tests._system.test_file_kind import JSON, KINDS, UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, -0, 1.5e3, "\\u00e4", {"a": null}]}',
        "[]",
        '"a"',
        " 1 ",
        '{"": {"": 1}}',
        "[NaN, -Infinity]",
    ],
)
def test_json_is_read_as_python_reads_it(text):
    assert repr(parse_json(text.encode(), "a.json")) == repr(json.loads(text))


REASONS = {
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
    "a key twice, once escaped": (b'{"a": 1, "\\u0061": 2}', "the key 'a' stands twice"),
    "a long key twice": (b'{"%s": 1, "%s": 2}' % (b"a" * 500, b"a" * 500), "the key 'aaa"),
    "cut": (b'{"a": "b', "Unterminated string"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "words": (b"Entry not found", "Expecting value"),
    "latin-1": ('{"a": "ü"}'.encode("latin-1"), "can't decode"),
    "a byte order mark": (b"\xef\xbb\xbf" + JSON, "begins with a byte order mark"),
    "more after it": (b"{} {}", "Extra data"),
    "many digits": (b"9" * 10_000, "digits"),
}


@pytest.mark.parametrize(("raw", "reason"), REASONS.values(), ids=REASONS)
def test_anything_else_has_a_reason(raw, reason):
    with pytest.raises(NoJsonError, match=reason) as caught:
        parse_json(raw, "a.json")
    assert len(str(caught.value)) < 300
    assert caught.value.code is None


@pytest.mark.parametrize(("data", "what", "code"), KINDS.values(), ids=KINDS)
def test_another_kind_of_file_is_named(data, what, code):
    with pytest.raises(NoJsonError) as caught:
        parse_json(data, "config.json")
    assert str(caught.value).startswith(f"it is {what}")
    assert caught.value.code == code
    assert caught.value.cure


@pytest.mark.parametrize("data", [data for name, data in UNKNOWN.items() if name not in {"JSON", "a list"}])
def test_what_is_not_known_is_refused_too(data):
    with pytest.raises(NoJsonError):
        parse_json(data, "config.json")


def test_a_bomb_is_counted_before_it_is_parsed():
    bomb = b"[" + b"[]," * 2_000_000 + b"[]]"
    with pytest.raises(JsonTooLargeError, match="MB to parse, the limit is 180 MB"):
        parse_json(bomb, "a.json")
    many = b"[" + b"1," * 1_000_000 + b"1]"
    with pytest.raises(JsonTooLargeError):
        parse_json(many, "a.json")
    assert len(parse_json(many, "a.json", entry_bytes=40)) == 1_000_001


def test_a_large_archive_is_named_not_counted():
    with pytest.raises(NoJsonError, match="a gzip archive") as caught:
        parse_json(b"\x1f\x8b" + b",\xff" * 1_000_000, "config.json")
    assert caught.value.code == "E-FORMAT"


def test_constants_and_integers_can_be_refused():
    with pytest.raises(NoJsonError, match="NaN is not JSON"):
        parse_json(b"[NaN]", "a.json", constants=False)

    def positive(text):
        if text.startswith("-"):
            raise ValueError("negative")
        return int(text)

    with pytest.raises(NoJsonError, match="negative"):
        parse_json(b"[-0]", "a.json", parse_int=positive)


def test_a_float_that_json_has_no_word_for_is_read_as_transformers_writes_it():
    raw = b'{"limit": [0.0, {"__float__": "Infinity"}, {"__float__": "-Infinity"}], "other": {"__float__": "1"}}'
    assert parse_json(raw, "config.json") == {
        "limit": [0.0, math.inf, -math.inf],
        "other": {"__float__": "1"},
    }
    assert math.isnan(parse_json(b'{"__float__": "NaN"}', "config.json"))
    assert parse_json(b'{"a": {"__float__": "NaN"}}', "header", constants=False) == {
        "a": {"__float__": "NaN"}
    }
