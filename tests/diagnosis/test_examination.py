"""Examination: its exit code, its JSON and its lines follow from the findings."""

from __future__ import annotations

import json

import pytest

from shardload import Examination, KeyMap
from shardload.diagnosis.examination import SCHEMA
from shardload.diagnosis.finding import Finding

BAD = Finding("E-WRAP", "a wrapper", 3, "strip it", KeyMap().rename("m.{...}", "{...}"), nbytes=30)
NOTE = Finding("W-TIE", "tied", 1, "nothing")
UNSAFE = Finding("E-CORRUPT", "bytes", 1, "fetch it again", unsafe=True)


@pytest.mark.parametrize(
    ("findings", "cured", "code"),
    [
        ((), False, 0),
        ((NOTE,), False, 0),
        ((BAD,), False, 1),
        ((BAD, NOTE), True, 3),
        ((UNSAFE, BAD), True, 4),
    ],
)
def test_the_exit_code_says_how_bad_it_is(findings, cured, code):
    found = Examination("here", findings, cured=cured)
    assert found.exit_code == code
    assert found.to_dict()["exit_code"] == code


def test_it_is_json():
    found = Examination("here", (BAD, NOTE), BAD.key_map, True, "Net", 9, 90, ["a note"])
    document = json.loads(json.dumps(found.to_dict()))
    assert (document["schema"], document["where"], document["against"]) == (SCHEMA, "here", "Net")
    assert [finding["code"] for finding in document["findings"]] == ["E-WRAP", "W-TIE"]
    assert document["key_map"] == [{"op": "rename", "source": "m.{...}", "target": "{...}"}]
    assert (document["keys"], document["nbytes"], document["notes"]) == (9, 90, ["a note"])
    assert Examination("here").to_dict()["key_map"] is None


def test_what_is_unproven_is_said_once():
    def finding(*lines):
        return Finding("E-X", "x", 1, "y", unproven=lines)

    assert Examination("here", (finding("a", "b"), finding("b"))).unproven == ("a", "b")


def test_lines_for_people():
    assert Examination("here", keys=2).lines() == ["here: headers and index are sound (2 keys)"]
    assert Examination("here", against="Net", keys=2000).lines() == ["here: fits Net (2,000 keys)"]
    lines = Examination("here", (BAD,), BAD.key_map, True, "Net", 9, 90).lines()
    assert lines[0] == "here → Net"
    assert lines[1].startswith("E-WRAP  3/9 keys explained (33% of bytes)")
    assert lines[-1] == "map: 1 rule, tried on the headers: it cures everything"
    half = Examination(
        "here", (BAD, Finding("E-X", "x", 1, "y", unproven=("a",))), BAD.key_map, keys=9
    ).lines()
    assert half[-1].endswith("it cures a part; it has unproven layouts, so look at it first")


def test_however_much_was_found_it_fits_a_screen():
    many = tuple(
        Finding(f"E-{n}", "cause", 1, "cure", evidence=tuple(f"line {m}" for m in range(30)))
        for n in range(20)
    )
    lines = Examination("here", many, BAD.key_map, keys=9).lines()
    assert len(lines) <= 40
    assert "13 more findings (E-7, E-8" in "\n".join(lines)
