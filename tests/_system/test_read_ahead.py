"""Read-ahead asks only for cold files, and only when there is room; the page cache shows the result."""

from __future__ import annotations

import mmap
import os
import time

import pytest
import torch

from shardload import build_shell, fill, open_checkpoint
from shardload._system.read_ahead import ReadAhead, free_memory, is_cold
from shardload.checkpoint.shard import Shard
from tests.tiny import write_checkpoint

SIZE = 32 * 2**20


@pytest.fixture
def cold(tmp_path):
    """The descriptor and a mapping of a file that has no page in the page cache."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        yield file.fileno(), cold_mapping(file.fileno())


def cold_mapping(descriptor: int) -> mmap.mmap:
    evict(descriptor)
    mapping = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    if not is_cold(mapping):
        pytest.skip("this file system keeps its pages, or can't tell")
    return mapping


def evict(descriptor: int) -> None:
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def becomes_warm(mapping: mmap.mmap, seconds: float = 600) -> bool:
    end = time.monotonic() + seconds
    while is_cold(mapping) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_cold(mapping)


def test_a_cold_file_is_read_without_being_touched(cold):
    descriptor, mapping = cold
    with ReadAhead(room=SIZE) as ahead:
        assert ahead.begin(descriptor, mapping)
        assert becomes_warm(mapping)


def test_a_warm_file_is_left_alone(cold):
    descriptor, mapping = cold
    while os.read(descriptor, 2**20):
        pass
    assert not ReadAhead(room=SIZE).begin(descriptor, mapping)


def test_a_file_too_large_for_what_is_free_is_left_alone(cold):
    descriptor, mapping = cold
    assert not ReadAhead(room=SIZE - 1).begin(descriptor, mapping)
    assert is_cold(mapping)


def test_room_is_used_up(cold):
    descriptor, mapping = cold
    with ReadAhead(room=SIZE + 1) as ahead:
        assert ahead.begin(descriptor, mapping)
        assert becomes_warm(mapping)
        evict(descriptor)
        assert not ahead.begin(descriptor, mapping)


def count_of(kind: str) -> int:
    """Return the number of descriptors ("fd") or threads ("task") of this process."""
    return len(os.listdir(f"/proc/self/{kind}"))


def wait_until(holds) -> None:
    for _ in range(60_000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never holds")


def test_threads_end_with_a_block_that_never_ended(cold):
    descriptor, mapping = cold
    before, tasks = count_of("fd"), count_of("task")
    ahead = ReadAhead(room=SIZE)
    ahead.begin(descriptor, mapping)
    del ahead
    wait_until(lambda: count_of("task") == tasks and count_of("fd") == before)


def test_no_descriptor_and_no_thread_is_left(cold):
    descriptor, mapping = cold
    before, tasks = count_of("fd"), count_of("task")
    with ReadAhead(room=SIZE) as ahead:
        ahead.begin(descriptor, mapping)
        assert count_of("task") > tasks
    wait_until(lambda: count_of("task") == tasks and count_of("fd") == before)


def test_free_memory_is_within_the_machines():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory() <= total


def test_a_load_asks_for_its_cold_shards(tmp_path):
    state = {"weight": torch.randn(2048, 2048), "bias": torch.randn(2048)}
    folder = write_checkpoint(tmp_path, state, shards=1)
    checkpoint = open_checkpoint(folder)
    with (folder / "model.safetensors").open("rb") as file:
        mapping = cold_mapping(file.fileno())
        fill(build_shell(lambda: torch.nn.Linear(2048, 2048)), checkpoint)  # same dtype: no weight is touched
        assert becomes_warm(mapping)


@pytest.mark.parametrize("copy", [False, True])
def test_of_a_shard_only_the_spans_of_a_rank_are_asked_for(tmp_path, copy):
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        mapping = cold_mapping(file.fileno())
        front, back = memoryview(mapping)[: SIZE // 4], memoryview(mapping)[SIZE // 2 :]
        with Shard(path, copy=copy) as shard, ReadAhead(room=SIZE) as ahead:
            shard.read_ahead(ahead, [(0, SIZE // 4)])
            assert becomes_warm(front)
        assert is_cold(back)
        front.release(), back.release()
