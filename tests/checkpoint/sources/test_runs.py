"""Runs: bytes of a file go into the right memory by few requests."""

from __future__ import annotations

import random
import threading

import pytest

from shardload.checkpoint.sources.folder import LocalFile
from shardload.checkpoint.sources.runs import CONNECTIONS, GAP, RUN, Run, fetch_runs, runs_of
from shardload.errors import CorruptError

CONTENT = random.Random(0).randbytes(40_000)


def parts_of(*spans):
    memory = [bytearray(length) for _, length in spans]
    return memory, [(offset, memoryview(each)) for (offset, _), each in zip(spans, memory, strict=True)]


def test_parts_with_holes_get_their_bytes_however_they_arrive():
    chance = random.Random(1)
    for _ in range(200):
        spans, at = [], 0
        for _ in range(chance.randrange(1, 6)):
            at += chance.randrange(0, 3000)
            spans.append((at, chance.randrange(1, 3000)))
            at += spans[-1][1]
        memory, parts = parts_of(*spans)
        run = Run(parts)
        while run.left:
            if chance.random() < 0.5:
                run.take(CONTENT[run.at : run.at + chance.randrange(1, 2000)])
            else:
                space = run.space()
                n = chance.randrange(1, len(space) + 1)
                space[:n] = CONTENT[run.at : run.at + n]
                run.advance(n)
            if chance.random() < 0.1:
                run.rewind(chance.randrange(run.start, run.at + 1))
        for (offset, length), each in zip(spans, memory, strict=True):
            assert each == CONTENT[offset : offset + length]


def test_more_than_a_run_wants_is_dropped():
    memory, parts = parts_of((10, 5))
    run = Run(parts)
    run.take(CONTENT[10:100])
    assert (run.left, bytes(memory[0])) == (0, CONTENT[10:15])


def test_near_parts_share_a_request_and_long_ones_are_cut():
    _, parts = parts_of((0, 10), (10, 10), (GAP, 10), (3 * GAP, 10))
    assert [(run.start, run.stop) for run in runs_of(parts)] == [(0, GAP + 10), (3 * GAP, 3 * GAP + 10)]
    _, parts = parts_of((7, 2 * RUN + 1))
    assert [run.stop - run.start for run in runs_of(parts)] == [RUN, RUN, 1]
    _, parts = parts_of((5, 10), (5, 10), (8, 3))  # the same bytes for two tensors
    assert [(run.start, run.stop) for run in runs_of(parts)] == [(5, 15), (5, 15), (8, 11)]
    assert runs_of(parts_of((3, 0))[1]) == []


def test_runs_are_fetched_on_several_connections_and_the_first_error_ends_them():
    at_once = threading.Barrier(CONNECTIONS, timeout=10)
    runs = [Run(parts_of((index * 10, 10))[1]) for index in range(CONNECTIONS)]
    fetch_runs(runs, lambda run: (at_once.wait(), run.advance(run.left)))
    assert not any(run.left for run in runs)

    def refuse(run):
        raise CorruptError("no")

    with pytest.raises(CorruptError):
        fetch_runs([Run(parts_of((0, 1))[1]) for _ in range(100)], refuse)


def test_a_file_on_disk_fills_parts_and_says_where_it_ends(tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    file = LocalFile("f", tmp_path / "f")
    memory, parts = parts_of((100, 50), (7, 3))
    file.read_many(parts)
    assert [bytes(each) for each in memory] == [CONTENT[100:150], CONTENT[7:10]]
    with pytest.raises(CorruptError, match="ends at byte 40,000"):
        file.read_into(39_999, memoryview(bytearray(2)))
