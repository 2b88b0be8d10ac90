"""RangeReader: parts of a file on a real server, whatever the server does to a range."""

from __future__ import annotations

import random
import threading

import pytest

from shardload.checkpoint.sources import find_source
from shardload.checkpoint.sources.blocks import BLOCK, MAX_AHEAD
from shardload.checkpoint.sources.hub_repo import Listed, PinnedRepo
from shardload.checkpoint.sources.ranges import PIECE, RangeReader, client_retries
from shardload.errors import AccessError, CorruptError, NotFoundError

from .org_model import BIG, HUGE


def test_a_header_costs_few_bytes_of_a_large_file(hub):
    hub.commit("org/huge", {"model.safetensors": HUGE})
    file = find_source("org/huge")[0].open("model.safetensors")
    assert file.read_at(0, 8) == HUGE[:8]
    assert file.read_at(8, 90_000) == HUGE[8:90_008]
    assert file.read_at(len(HUGE) - 22, 22) == HUGE[-22:]
    assert hub.sent("model.safetensors") <= 200_000
    assert len([r for r in hub.requests if r.host == "cdn"]) <= 3


def test_small_reads_share_a_request_and_runs_of_them_read_ahead(hub):
    hub.commit("org/huge", {"model.bin": HUGE})
    file = find_source("org/huge")[0].open("model.bin")
    got = b"".join(file.read_at(offset, 1000) for offset in range(0, 2_000_000, 1000))
    assert got == HUGE[:2_000_000]
    assert len([r for r in hub.requests if r.host == "cdn"]) <= 8


def test_the_address_that_the_hub_redirects_to_is_kept(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    for block in (0, 20, 40):
        file.read_at(block * BLOCK, 10)
    assert [r.host for r in hub.requests if r.file] == ["hub", "cdn", "cdn", "cdn"]


def test_an_expired_address_is_asked_for_again(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    file.read_at(0, 10)
    file._ranges._direct = hub.cdn + "/org--model/0000/gone"
    assert file.read_at(20 * BLOCK, 10) == BIG[20 * BLOCK :][:10]


def test_any_part_of_a_file_is_the_same_as_of_its_bytes(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    chance = random.Random(3)
    for _ in range(60):
        offset, length = chance.randrange(len(BIG) + 10), chance.choice([0, 1, 7, BLOCK, 3 * BLOCK, 200_000])
        assert file.read_at(offset, length) == BIG[offset : offset + length]
    assert file.read_at(0, 10**9) == BIG
    assert file.size == len(BIG)
    with pytest.raises(ValueError):
        file.read_at(-1, 1)


def test_threads_may_share_a_file(hub, commit):
    file = find_source("org/model")[0].open("model.safetensors")
    wrong = []

    def read(seed):
        chance = random.Random(seed)
        for _ in range(30):
            offset = chance.randrange(len(BIG))
            if file.read_at(offset, 5000) != BIG[offset : offset + 5000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


@pytest.mark.parametrize("cut", [0, 1000, 40_000])
def test_a_range_that_is_cut_is_asked_for_again_from_where_it_stopped(hub, commit, cut):
    hub.fault("org/model", "model.safetensors", cut=cut, times=1)
    file = find_source("org/model")[0].open("model.safetensors")
    assert file.read_at(0, 100_000) == BIG[:100_000]
    assert hub.sent("model.safetensors") <= 2 * BLOCK + PIECE


def test_a_range_that_is_always_cut_at_once_is_given_up(hub, commit):
    hub.fault("org/model", "model.safetensors", cut=0)
    with pytest.raises(NotFoundError, match="could not be reached"):
        find_source("org/model")[0].open("model.safetensors").read_at(0, 8)
    hub.heal()


def test_a_server_that_stalls_is_given_up(hub, commit, monkeypatch, cache):
    hub.use(monkeypatch, cache=cache, timeout=0.1)
    hub.fault("org/model", "model.safetensors", stall=0)
    with pytest.raises(NotFoundError, match="could not be reached"):
        find_source("org/model")[0].open("model.safetensors").read_at(0, 8)


def test_a_server_that_ignores_ranges(hub):
    hub.commit("org/huge", {"model.bin": HUGE})
    hub.fault("org/huge", "model.bin", ignore_range=True)
    file = find_source("org/huge")[0].open("model.bin")
    assert file.read_at(0, 8) == HUGE[:8]  # the reader stops after the start of the whole file
    assert file.read_at(0, 5_000_000) == HUGE[:5_000_000]
    with pytest.raises(CorruptError, match="ignores range requests") as caught:
        file.read_at(10_000_000, 8)
    assert "org/huge@" in caught.value.where
    assert "model.bin" in caught.value.where
    assert hub.sent("model.bin") < 2 * len(HUGE)  # three reads, each of which ends early
    assert file.local_path().read_bytes() == HUGE  # the cure of the error works


def test_a_server_that_sends_another_part(hub, commit):
    hub.fault("org/model", "model.safetensors", shift=100)
    with pytest.raises(CorruptError, match="bytes 100-"):
        find_source("org/model")[0].open("model.safetensors").read_at(0, 8)


def test_a_server_that_lies_about_the_length_of_a_part(hub, commit):
    hub.fault("org/model", "model.safetensors", longer=50, times=1)
    assert find_source("org/model")[0].open("model.safetensors").read_at(0, 8) == BIG[:8]
    hub.fault("org/model", "model.safetensors", longer=-50, times=1)
    assert find_source("org/model")[0].open("model.safetensors").read_at(0, BLOCK) == BIG[:BLOCK]


def test_a_listing_that_is_not_the_files_own_length(hub, commit):
    source, _ = find_source("org/model")
    for size, error in [(len(BIG) - 5, "has 3000000 bytes"), (len(BIG) + BLOCK, "shorter|has 3000000 bytes")]:
        source._listing["model.safetensors"] = Listed(size)
        with pytest.raises(CorruptError, match=error):
            source.open("model.safetensors").read_at(size - 8, 8)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, NotFoundError),
        (500, NotFoundError),
        (503, NotFoundError),
        (403, AccessError),
        (410, NotFoundError),
    ],
)
def test_a_part_that_the_server_refuses(hub, commit, status, error):
    hub.fault("org/model", "model.safetensors", status=status)
    with pytest.raises(error) as caught:
        find_source("org/model")[0].open("model.safetensors").read_at(0, 8)
    assert "model.safetensors" in str(caught.value)
    assert commit in caught.value.where
    tries = len([r for r in hub.requests if r.file])
    assert tries == (4 if status in {429, 500, 503} else 1)


def test_a_busy_server_is_asked_again(hub, commit):
    hub.fault("org/model", "model.safetensors", status=503, times=2)
    assert find_source("org/model")[0].open("model.safetensors").read_at(0, 8) == BIG[:8]


@pytest.fixture
def reader(hub, commit, cache):
    pinned = PinnedRepo("org/model", commit, "main", cache)
    file = "model.safetensors"
    return RangeReader(pinned.url(file), len(BIG), headers=pinned.headers(), asked=pinned.asking(file))


def test_a_gap_between_what_is_held_is_one_request(hub, reader):
    reader.read_at(2 * BLOCK, 1)
    reader.read_at(5 * BLOCK, 1)
    before = len(hub.requests)
    assert reader.read_at(0, 7 * BLOCK) == BIG[: 7 * BLOCK]
    assert len(hub.requests) - before == 3  # blocks 0-1, 3-4 and 6
    assert reader.read_at(3 * BLOCK + 1, BLOCK) == BIG[3 * BLOCK + 1 : 4 * BLOCK + 1]
    assert len(hub.requests) - before == 3


def test_a_run_reads_ahead_by_doubling_and_never_beyond_the_end(hub, reader):
    got = b"".join(reader.read_at(block * BLOCK, BLOCK) for block in range(len(BIG) // BLOCK + 1))
    assert got == BIG
    lengths = [request.sent for request in hub.requests if request.host == "cdn"]
    assert [length // BLOCK for length in lengths[:6]] == [1, 1, 2, 4, 8, MAX_AHEAD]
    assert sum(lengths) == len(BIG)


def test_reads_beyond_the_end_are_short_and_below_zero_refused(hub, reader):
    assert reader.read_at(len(BIG) - 3, 10) == BIG[-3:]
    assert reader.read_at(len(BIG), 10) == b""
    with pytest.raises(ValueError, match="negative"):
        reader.read_at(-1, 10)


@pytest.fixture
def long_file(hub):
    content = random.Random(5).randbytes(12_000_000)
    hub.commit("org/long", {"model.bin": content})
    return find_source("org/long")[0].open("model.bin"), content


def test_long_ranges_go_into_memory_and_the_rest_comes_from_the_socket(hub, long_file):
    file, content = long_file
    memory = bytearray(len(content))
    file.read_into(0, memoryview(memory))
    assert memory == content
    memory = bytearray(9_000_001)
    file.read_into(1_000_001, memoryview(memory))
    assert memory == content[1_000_001:10_000_002]
    assert file.read_at(5, 9_000_000) == content[5:9_000_005]
    assert len([r for r in hub.requests if r.host == "cdn"]) == 3
    assert file._reader._reads_socket == client_retries()


def test_a_connection_is_used_again_after_a_range_from_its_socket(hub, long_file, monkeypatch):
    file, content = long_file
    memory = bytearray(3_000_000)
    opened = []
    monkeypatch.setattr(hub, "opened", lambda connection, closed=False: closed or opened.append(connection))
    for start in range(0, len(content), len(memory)):
        file.read_into(start, memoryview(memory))
        assert memory == content[start : start + len(memory)]
        assert file.read_at(start, 10) == content[start : start + 10]
    assert file._reader._reads_socket == client_retries()
    if client_retries():
        assert len(opened) <= 2  # of the Hub, and of the servers of large files


def test_many_parts_take_few_requests(hub, long_file):
    file, content = long_file
    spans = [(0, 100_000), (100_000, 50), (900_000, 7), (5_000_000, 6_500_000), (3_000_000, 1)]
    memory = [bytearray(length) for _, length in spans]
    file.read_many((offset, memoryview(m)) for (offset, _), m in zip(spans, memory, strict=True))
    for (offset, length), each in zip(spans, memory, strict=True):
        assert each == content[offset : offset + length]
    assert len([r for r in hub.requests if r.host == "cdn"]) == 3


def test_a_long_range_that_is_cut_is_asked_for_again_and_no_longer_from_the_socket(hub, long_file):
    file, content = long_file
    hub.fault("org/long", "model.bin", cut=3_000_000, times=1)
    memory = bytearray(len(content))
    file.read_into(0, memoryview(memory))
    assert memory == content
    assert not file._reader._reads_socket
    assert hub.sent("model.bin") <= len(content) + 3_000_000


def test_more_than_a_file_has_is_refused_before_a_request(hub, long_file):
    file, content = long_file
    with pytest.raises(CorruptError, match="has 12,000,000 bytes"):
        file.read_into(len(content) - 1, memoryview(bytearray(2)))
    assert [r for r in hub.requests if r.host == "cdn"] == []
