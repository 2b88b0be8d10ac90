"""Casts on workers equal torch's own casts, and torch's number of threads stays as it was."""

from __future__ import annotations

import threading

import pytest
import torch

from shardload._system.fresh_pages import FreshPages
from shardload.placement.casting import Casts

MB = 2**20


@pytest.mark.parametrize("numel", [0, 1, 2**15, 2**15 + 1, 3 * 2**20 + 7])
@pytest.mark.parametrize(
    ("before", "after"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]
)
def test_a_cast_is_torchs_and_every_byte_is_released_once(numel, before, after):
    stored = torch.randn(numel).to(before)
    released = []
    casts = Casts()
    result = casts.begin(stored, after, lambda *span: released.append(span))
    casts.wait()
    casts.close()
    assert torch.equal(result, stored.to(after))
    assert result.dtype == after
    assert result.untyped_storage().nbytes() == result.nbytes
    ends = [0, *(stop for _, stop in sorted(released))]
    assert [first for first, _ in sorted(released)] == ends[:-1]
    assert ends[-1] == stored.nbytes


def test_a_tensor_that_is_not_contiguous_is_cast_as_torch_does():
    stored = torch.randn(700, 300).to(torch.bfloat16).t()
    casts = Casts()
    result = casts.begin(stored, torch.float32)
    casts.wait()
    assert torch.equal(result, stored.to(torch.float32))
    assert result.stride() == stored.to(torch.float32).stride()


def test_a_cast_in_inference_mode_is_done_there_too():
    stored = torch.randn(2**21).to(torch.bfloat16)
    casts = Casts()
    with torch.inference_mode():
        result = casts.begin(stored, torch.float32)
        casts.wait()
    casts.close()
    assert result.is_inference()
    assert torch.equal(result, stored.to(torch.float32))


def test_what_fails_on_a_worker_is_raised_by_wait_and_no_thread_is_left():
    before = threading.active_count()
    casts = Casts()

    def fail(_first: int, _stop: int) -> None:
        raise OSError("the disk is gone")

    casts.begin(torch.zeros(2**21), torch.float16, fail)
    with pytest.raises(OSError, match="the disk is gone"):
        casts.wait()
    casts.close()
    assert threading.active_count() == before


def test_torchs_threads_are_as_they_were_for_this_thread_and_for_new_ones():
    before = torch.get_num_threads()
    casts = Casts()
    casts.begin(torch.zeros(2**21), torch.float16)
    casts.wait()
    casts.close()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *seen] == [before, before]


def test_touching_keeps_the_values_beside_and_makes_pages_resident():
    memory = torch.empty(32 * MB, dtype=torch.uint8)
    memory[: 2 * MB] = 7
    pages = FreshPages()
    for start in range(0, 32 * MB, 4 * MB):
        pages.touch(memory.data_ptr() + start, 4 * MB)
    assert bool((memory[: 2 * MB] == 7).all())


def test_the_pages_that_cost_less_are_taken():
    pages = FreshPages()
    pages.note(large=True, nbytes=4 * MB, seconds=0.009)
    pages.note(large=False, nbytes=4 * MB, seconds=0.001)
    assert not pages.prefers_large
    pages.note(large=True, nbytes=4 * MB, seconds=0.0005)
    assert pages.prefers_large
    # The kernel has no free large pages left.
    pages.note(large=True, nbytes=4 * MB, seconds=0.009)
    assert not pages.prefers_large
    # One interruption of a touch with small pages does not change the choice.
    pages.note(large=False, nbytes=4 * MB, seconds=0.030)
    assert not pages.prefers_large
