"""The memory of this process as the kernel tells it, and the thread that samples it."""

from __future__ import annotations

import mmap
import os
import time

import pytest

from shardload._system.process_memory import PeakSampler, measure, size_of

MEGABYTE = 10**6


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def ends_with(count: int) -> bool:
    for _ in range(2000):
        if threads() == count:
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize(
    ("nbytes", "text"), [(312, "312 B"), (4200, "4.2 kB"), (12.5e6, "12.5 MB"), (12.49e9, "12.49 GB")]
)
def test_sizes_are_in_powers_of_ten(nbytes, text):
    assert size_of(nbytes) == text


def test_memory_that_is_written_to_is_anonymous():
    before = measure()
    held = bytearray(os.urandom(64)) * (MEGABYTE // 2)
    assert measure().anon - before.anon > 0.9 * len(held)


def test_a_mapped_file_that_is_read_is_not(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(32 * MEGABYTE))
    before = measure()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        after = measure()
    assert after.file - before.file > 0.9 * 32 * MEGABYTE


def test_the_peak_of_a_block_is_seen_though_the_memory_is_gone():
    before = threads()
    with PeakSampler(interval=0.001) as sampler:
        first = sampler.sample()
        held = mmap.mmap(-1, 64 * MEGABYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held.write(b"x" * (64 * MEGABYTE))
        low, peak = time.perf_counter(), sampler.peak.anon
        while sampler.peak.anon - first.anon < 60 * MEGABYTE and time.perf_counter() - low < 120:
            time.sleep(0.001)  # only the thread samples
        held.close()
    assert sampler.peak.anon >= peak
    assert sampler.peak.anon - first.anon >= 60 * MEGABYTE
    assert ends_with(before)


def test_the_thread_ends_with_a_sampler_whose_block_never_ended():
    before = threads()
    sampler = PeakSampler(interval=0.001)
    sampler.__enter__()
    assert threads() == before + 1
    del sampler
    assert ends_with(before)
