"""StreamedShard: tensors come as they are stored, ahead of their use, in bounded memory, each in its own."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
import torch

from shardload.checkpoint.sources.runs import AHEAD, RUN
from shardload.checkpoint.streamed_shard import StreamedShard
from shardload.errors import CorruptError
from shardload.tensor_ref import Span, TensorRef


class Far:
    """A file in memory that counts requests, and can fail at one of them."""

    name, is_remote, is_streamed = "far.safetensors", True, True

    def __init__(self, content, fails_at=None):
        self.content, self.size = content, len(content)
        self.requests, self.fails_at = [], fails_at
        self.lock = threading.Lock()

    def opened(self, name):
        return self

    def read_at(self, offset, length):
        self._count(offset, offset + length)
        return self.content[offset : offset + length]

    def read_many(self, parts):
        parts = list(parts)
        self._count(min(at for at, _ in parts), max(at + len(memory) for at, memory in parts))
        for at, memory in parts:
            memory[:] = self.content[at : at + len(memory)]

    def _count(self, start, stop):
        with self.lock:
            self.requests.append((start, stop))
        if self.fails_at is not None and start <= self.fails_at < stop:
            raise CorruptError("cut")


def stored(*tensors):
    """Return a file of tensors one after another, and their refs."""
    refs, content = [], bytearray(random.Random(1).randbytes(24))
    for number, tensor in enumerate(tensors):
        raw = (
            bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
            if tensor.numel() < 1e5
            else raw_of(tensor)
        )
        span = Span(len(content), len(content) + len(raw))
        code = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}[tensor.dtype]
        refs.append(TensorRef(f"t{number}", code, tuple(tensor.shape), "far.safetensors", span))
        content += raw
    return bytes(content), refs


def raw_of(tensor):
    import ctypes

    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


def test_tensors_are_what_was_stored_with_memory_of_their_own():
    tensors = [
        torch.randn(30, 70),
        torch.randn(3).bfloat16(),
        torch.tensor(7),
        torch.empty(0, 4),
        torch.randn(999),
    ]
    content, refs = stored(*tensors)
    file = Far(content)
    with StreamedShard(lambda _: file, refs) as shard:
        read = [shard.tensor(ref) for ref in refs]
    assert all(torch.equal(one, other) for one, other in zip(read, tensors, strict=True))
    assert len({tensor.untyped_storage().data_ptr() for tensor in read if tensor.numel()}) == 4
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in read)
    assert file.requests == [(24, len(content))]  # small tensors that touch share one


def test_what_is_read_ahead_is_bounded():
    each = torch.zeros(3 * 2**20 // 4)
    content, refs = stored(*[each] * 20)
    file = Far(content)
    with StreamedShard(lambda _: file, refs) as shard:
        for number, ref in enumerate(refs):
            shard.tensor(ref)
            shard._pool.submit(int).result()
            taken = refs[number].span.stop
            assert max(stop for _, stop in file.requests) <= taken + AHEAD + each.nbytes
    assert sum(stop - start for start, stop in file.requests) == len(content) - 24
    assert max(stop - start for start, stop in file.requests) <= RUN


def test_a_large_tensor_is_read_in_pieces_and_alone():
    big, small = torch.arange(2**23 + 5), torch.arange(10)
    content, refs = stored(small, big, small)
    file = Far(content)
    with StreamedShard(lambda _: file, refs) as shard:
        read = [shard.tensor(ref) for ref in refs]
    assert [torch.equal(one, other) for one, other in zip(read, [small, big, small], strict=True)] == [
        True
    ] * 3
    assert len(file.requests) >= 1 + big.nbytes // RUN


def test_columns_and_strides_are_read_of_the_rows_that_hold_them():
    whole = torch.randn(40, 8192)
    content, (ref,) = stored(whole)
    start = ref.span.start
    columns = TensorRef(
        "c", "F32", (40, 1024), ref.shard, Span(start + 4096, start + 39 * 8192 * 4 + 8192), (8192, 1)
    )
    turned = TensorRef("t", "F32", (8192, 40), ref.shard, ref.span, (1, 8192))
    with StreamedShard(Far(content).opened, [columns, turned]) as shard:
        assert torch.equal(shard.tensor(columns), whole[:, 1024:2048])
        assert torch.equal(shard.tensor(turned), whole.T)


def test_a_tensor_out_of_order_is_read_by_itself_and_one_may_come_twice():
    tensors = [torch.randn(10) for _ in range(4)]
    content, refs = stored(*tensors)
    with StreamedShard(Far(content).opened, [refs[0], refs[0], refs[1]]) as shard:
        for number in (0, 3, 0, 2, 1, 1):
            assert torch.equal(shard.tensor(refs[number]), tensors[number])


def test_the_error_of_a_request_ends_the_load_of_its_tensor():
    content, refs = stored(*[torch.zeros(2**21)] * 8)
    read, file = [], Far(content, 3 * 2**23 + 100)
    with pytest.raises(CorruptError, match="cut"), StreamedShard(lambda _: file, refs) as shard:
        [read.append(shard.tensor(ref)) for ref in refs]
    assert len(read) == 3


def test_the_next_file_is_begun_before_the_last_tensor_of_one_is_wanted():
    content, refs = stored(torch.zeros(2**18), torch.ones(2**18))
    others = [replace(ref, shard="other") for ref in refs]
    files = {refs[0].shard: Far(content), "other": Far(content)}
    with StreamedShard(files.__getitem__, [*refs, *others]) as shard:
        assert torch.equal(shard.tensor(refs[0]), torch.zeros(2**18))
        [job.result() for reading in shard._begun for job in reading.jobs]
        assert files["other"].requests == [(24, len(content))]
        assert all(torch.equal(shard.tensor(ref), torch.ones(2**18)) for ref in refs[1:])
        assert [float(shard.tensor(ref).sum()) for ref in others] == [0, 2**18]
