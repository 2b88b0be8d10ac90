"""Read-ahead asks only for cold files, and only when there is room; the page cache shows the result."""

from __future__ import annotations

import mmap
import os
import threading
import time
from contextlib import suppress

import pytest
import torch

from shardload import build_shell, fill, from_pretrained, open_checkpoint
from shardload._system.read_ahead import ReadAhead, free_memory, is_cold
from shardload.checkpoint.shard import Shard
from tests.tiny import write_checkpoint

SIZE = 32 * 2**20


@pytest.fixture
def cold(tmp_path):
    """A file that has no page in the page cache, and a mapping of it."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        yield path, cold_mapping(file.fileno())


@pytest.fixture
def asked(monkeypatch):
    """The spans that the kernel was asked for, by file: (inode, start, stop)."""
    calls = []
    ask = os.posix_fadvise

    def noting(descriptor: int, start: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            calls.append((os.fstat(descriptor).st_ino, start, start + length))
        ask(descriptor, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", noting)
    return calls


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
    path, mapping = cold
    with ReadAhead(room=SIZE) as ahead:
        assert ahead.begin(path, [(0, SIZE)])
        assert becomes_warm(mapping)


def test_a_warm_file_is_left_alone(cold, asked):
    path, _ = cold
    path.read_bytes()
    tasks = count_of("task")
    with ReadAhead(room=SIZE) as ahead:
        ahead.begin(path, [(0, SIZE)])
    wait_until(lambda: count_of("task") == tasks)
    assert not asked


def test_a_file_too_large_for_what_is_free_is_left_alone(cold):
    path, mapping = cold
    assert not ReadAhead(room=SIZE - 1).begin(path, [(0, SIZE)])
    assert is_cold(mapping, range(0, SIZE, SIZE // 16))


def test_room_is_used_up(cold):
    path, _ = cold
    with ReadAhead(room=SIZE + 1) as ahead:
        assert ahead.begin(path, [(0, SIZE)])
        assert not ahead.begin(path, [(0, SIZE)])


@pytest.mark.parametrize("only_inside", [False, True], ids=["error", "only inside"])
def test_after_an_error_and_outside_of_the_block_nothing_more_is_asked_for(cold, monkeypatch, only_inside):
    """Both threads are held in their first request: each asks for the rest of a piece of 32 MB at most."""
    path, _ = cold
    calls, gate, tasks = [], threading.Event(), count_of("task")
    held = threading.Semaphore(0)

    def ask(_descriptor: int, start: int, length: int, _advice: int) -> None:
        calls.append((start, length))
        held.release()
        gate.wait()

    monkeypatch.setattr(os, "posix_fadvise", ask)
    with suppress(ZeroDivisionError), ReadAhead(room=100 * SIZE, only_inside=only_inside) as ahead:
        for _ in range(10):
            ahead.begin(path, [(0, SIZE)])
        held.acquire(), held.acquire()
        if not only_inside:
            raise ZeroDivisionError
    gate.set()
    wait_until(lambda: count_of("task") == tasks)
    assert sum(length for _, length in calls) <= 2 * SIZE


def test_a_file_that_is_gone_or_shorter_is_no_error(tmp_path, cold, asked):
    path, _ = cold
    tasks = count_of("task")
    with ReadAhead(room=10 * SIZE) as ahead:
        ahead.begin(tmp_path / "gone", [(0, SIZE)])
        ahead.begin(path, [(SIZE, 2 * SIZE)])
    wait_until(lambda: count_of("task") == tasks)
    assert all(start >= SIZE for _, start, _ in asked)


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
    path, _ = cold
    before, tasks = count_of("fd"), count_of("task")
    ahead = ReadAhead(room=SIZE)
    ahead.begin(path, [(0, SIZE)])
    del ahead
    wait_until(lambda: count_of("task") == tasks and count_of("fd") == before)


def test_no_descriptor_and_no_thread_is_left(cold):
    path, _ = cold
    before, tasks = count_of("fd"), count_of("task")
    with ReadAhead(room=SIZE) as ahead:
        ahead.begin(path, [(0, SIZE)])
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
def test_all_shards_are_asked_for_before_the_first_one_is_read(tmp_path, asked, monkeypatch, copy):
    """A copy that asked shard by shard would wait for the disk at each of them."""
    state = {f"{number}.weight": torch.randn(1024, 1024) for number in range(4)}
    folder = write_checkpoint(tmp_path, state, shards=4)
    checkpoint = open_checkpoint(folder)
    shards = {path.stat().st_ino for path in folder.glob("*.safetensors")}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            cold_mapping(file.fileno())
    shell, take = (
        build_shell(
            lambda: torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(4)))
        ),
        Shard.tensor,
    )

    def tensor(shard: Shard, ref) -> torch.Tensor:
        wait_until(lambda: {inode for inode, _, _ in asked} == shards)
        return take(shard, ref)

    monkeypatch.setattr(Shard, "tensor", tensor)
    fill(shell, checkpoint, copy=copy)


def test_a_part_of_a_file_is_asked_for_alone(cold):
    path, mapping = cold
    with ReadAhead(room=SIZE) as ahead:
        ahead.begin(path, [(0, SIZE // 4)])
        front = memoryview(mapping)[: SIZE // 4]
        assert becomes_warm(front)
        front.release()
    assert is_cold(mapping, range(SIZE // 2, SIZE, SIZE // 16))


def test_a_load_asks_while_its_model_is_built_and_no_longer_when_that_fails(tmp_path):
    folder = write_checkpoint(tmp_path, {"weight": torch.randn(2048, 2048)}, shards=1)
    with (folder / "model.safetensors").open("rb") as file:
        mapping = cold_mapping(file.fileno())
        tasks = count_of("task")

        def make(_config: object) -> torch.nn.Module:
            assert becomes_warm(mapping)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            from_pretrained(folder, model_class=make)
        wait_until(lambda: count_of("task") == tasks)
