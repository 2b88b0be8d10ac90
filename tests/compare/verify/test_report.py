"""Verification: when it is ok, and what it says of files whose bytes differ."""

from __future__ import annotations

import json

import pytest

from shardload import CorruptError
from shardload.compare.verify.report import FileVerdict, ValueFinding, Verification, refuse_changed

SHARD = {"shard": True}


def report(*files, values=()):
    return Verification("here", None, "3 tensors", list(files), list(values))


@pytest.mark.parametrize("status", ["ok", "changed", "unknown", "absent"])
@pytest.mark.parametrize("is_shard", [True, False])
def test_weights_have_to_be_known_and_nothing_may_differ(status, is_shard):
    found = report(FileVerdict("a", 5, status, shard=is_shard), FileVerdict("b", 7, "ok", shard=True))
    assert found.ok is (status == "ok" or (status != "changed" and not is_shard))
    assert found.unverified == (["a"] if is_shard and status in {"unknown", "absent"} else [])
    assert found.nbytes == (12 if status in {"ok", "changed"} else 7)  # of what was hashed


def test_an_odd_value_is_not_ok():
    odd = ValueFinding("w", "a", "NaN", 2, 100)
    found = report(FileVerdict("a", 5, "ok", **SHARD), values=[odd])
    assert not found.ok
    document = json.loads(json.dumps(found.to_dict()))
    assert document["values"] == [{"tensor": "w", "shard": "a", "kind": "NaN", "count": 2, "numel": 100}]
    assert document["ok"] is document["values_screened"] is False
    assert document["files"][0]["status"] == "ok"


def test_it_is_one_line_for_people():
    found = report(FileVerdict("a", 5, "ok"), FileVerdict("b", 5, "ok"), FileVerdict("c", 5, "unknown"))
    assert str(found) == "here: 3 tensors; files ok 2, unknown 1"


def test_changed_files_are_refused_with_the_report_and_the_cause():
    changed = [FileVerdict(f"f{n}", 5, "changed", detail=f"has {n}") for n in range(10)]
    cause = ValueError("x")
    found = report(*changed, FileVerdict("good", 5, "ok"))
    with pytest.raises(CorruptError, match="10 of 11 files") as caught:
        refuse_changed(found, cause)
    assert caught.value.report is found
    assert caught.value.__cause__ is cause
    assert "f7: has 7" in caught.value.where
    assert "and 2 more" in caught.value.where
    assert "f8" not in caught.value.where
    refuse_changed(report(FileVerdict("good", 5, "ok"), FileVerdict("b", 5, "unknown")))
