"""BlockReader: small reads share requests, large ones go straight into memory."""

from __future__ import annotations

import random

import pytest

from shardload.checkpoint.sources.blocks import BLOCK, MAX_AHEAD, BlockReader
from shardload.errors import CorruptError

CONTENT = random.Random(2).randbytes(40 * BLOCK + 17)


class Reader(BlockReader):
    def __init__(self):
        super().__init__(len(CONTENT))
        self.fetched = []

    def _fetch(self, run):
        self.fetched.append((run.start, run.stop))
        run.take(CONTENT[run.start : run.stop])

    def _corrupt(self, what):
        return CorruptError(f"the file {what}")


def test_reads_equal_the_file_and_end_with_it():
    reader, chance = Reader(), random.Random(3)
    for _ in range(200):
        at, length = chance.randrange(len(CONTENT) + 10), chance.choice([0, 1, 100, BLOCK, 3 * BLOCK])
        assert reader.read_at(at, length) == CONTENT[at : at + length]
    assert reader.read_at(0, 10**9) == CONTENT


def test_small_reads_share_a_request_and_a_run_of_them_reads_ahead():
    reader = Reader()
    assert (
        b"".join(reader.read_at(at, 100) for at in range(0, 30 * BLOCK, 100))[: 30 * BLOCK]
        == CONTENT[: 30 * BLOCK]
    )
    assert len(reader.fetched) <= 8
    assert max(stop - start for start, stop in reader.fetched) == MAX_AHEAD * BLOCK


def test_memory_is_filled_by_one_request_and_parts_by_few():
    reader, memory = Reader(), bytearray(20 * BLOCK)
    reader.read_into(5, memoryview(memory))
    assert memory == CONTENT[5 : 5 + len(memory)]
    assert reader.fetched == [(5, 5 + len(memory))]
    reader.fetched.clear()
    one, other = bytearray(10), bytearray(BLOCK)
    reader.read_many([(3 * BLOCK, memoryview(other)), (0, memoryview(one))])
    assert (one, other) == (CONTENT[:10], CONTENT[3 * BLOCK : 4 * BLOCK])
    assert reader.fetched == [(0, 4 * BLOCK)]
    with pytest.raises(CorruptError, match="more are wanted"):
        reader.read_into(len(CONTENT) - 1, memoryview(one))
