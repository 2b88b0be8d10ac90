"""MergeReport: the least share, and what people and programs are told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from shardload import MergeReport
from shardload.adapters.merging.merge_report import MergeReport as Own
from shardload.adapters.merging.survival import MergedTensor
from shardload.writing import DiskRoom, Written


def rows():
    shares = {"layers.0.q": 0.995, "layers.1.q": 0.5, "head": None}
    return [MergedTensor(name, (2, 3), "bfloat16", 1, share, share and 0.1) for name, share in shares.items()]


def test_the_least_share_is_of_what_was_added():
    assert MergeReport is Own
    assert Own("base", ["a"], "bfloat16", tensors=rows()).least_share == 0.5
    assert Own("base", ["a"], "bfloat16", tensors=rows()[2:]).least_share is None
    assert Own("base", ["a"], "bfloat16").least_share is None


def test_it_is_json_and_its_rows_come_back():
    report = Own("base", ["a"], "bfloat16", "stochastic", rows(), room=DiskRoom(1, 2, 3), seconds=1.23456)
    document = json.loads(json.dumps(report.to_dict()))
    assert [MergedTensor.of_dict(row) for row in document["tensors"]] == rows()
    assert (document["least_share"], document["rounding"], document["seconds"]) == (0.5, "stochastic", 1.235)
    assert document["room"] == {"needed": 1, "shared": 2, "free": 3}
    assert document["written"] is None


def test_people_are_told_where_it_lies_and_what_was_lost():
    written = Written(
        Path("/out"),
        [Path("/out/a"), Path("/out/b")],
        Counter(written=2_000_000, linked=7),
        ["a"],
        verified=True,
    )
    report = Own(
        "base\x1b[31m",
        ["style"],
        "bfloat16",
        "stochastic",
        rows(),
        warnings=["mind\x07"],
        written=written,
        seconds=2,
    )
    lines = str(report).splitlines()
    assert lines[0] == "merged style into base\\x1b[31m"
    assert lines[1].endswith(
        "3 tensors, bfloat16, stochastic rounding, in 2.00 s; at least 50.0% of each delta survived the rounding"
    )
    assert "    layers.{0-1}.q  50.0% to 99.5%" in lines
    assert "    head  replaced" in lines
    assert any(
        line.endswith("/out: 2 files, 2.0 MB written, 7 B linked, read back and compared") for line in lines
    )
    assert any("1 shards were complete from an earlier run" in line for line in lines)
    assert lines[-1] == "  warning      mind\\x07"


def test_in_memory_it_says_what_is_kept():
    lines = str(Own("base", ["a"], "dtypes of the base", copied_bytes=3_000_000)).splitlines()
    assert lines[1].endswith("0 tensors, dtypes of the base, in 0.00 s")
    assert lines[2].endswith("3.0 MB of the base, to unmerge exactly")
