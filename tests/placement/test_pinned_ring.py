"""The ring of staging buffers, tested with a device that copies as late and in as odd an order as a GPU may."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from shardload import OnDevice, build_shell, fill, open_checkpoint
from shardload.placement.pinned_ring import PinnedRing
from tests.tiny import Net, random_state, write_checkpoint


class LateCopies:
    """A device that copies a piece at the last moment: when the ring waits for it, or at the end in reverse order.

    A ring that reused a buffer before its piece was copied would give the device other bytes.
    """

    def __init__(self, fails_at: int = -1) -> None:
        self.buffers: list[torch.Tensor] = []
        self.pending: list[int] = []
        self.most = self.copies = 0
        self._pieces: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._fails_at = fails_at
        self._lock = threading.Lock()

    def staging(self, nbytes: int) -> torch.Tensor:
        self.buffers.append(torch.full((nbytes,), 0xAB, dtype=torch.uint8))
        return self.buffers[-1]

    def empty(self, shape, dtype) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def copy(self, target, staged):
        with self._lock:
            number = self.copies
            self.copies += 1
            if number == self._fails_at:
                raise RuntimeError("the device is lost")
            self._pieces[number] = (target, staged)
            self.most = max(self.most, len(self._pieces))
        return lambda: self._take(number)

    def finish(self) -> None:
        for number in sorted(self._pieces, reverse=True):
            self._take(number)

    def _take(self, number: int) -> None:
        with self._lock:
            target, staged = self._pieces.pop(number, (None, None))
        if target is not None:
            assert target.dtype == staged.dtype
            target.copy_(staged)
            staged.fill_(0)


@pytest.mark.parametrize("numel", [0, 1, 255, 256, 257, 256 * 40 + 3])
@pytest.mark.parametrize(
    ("before", "after"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.int64, torch.int64)],
)
def test_what_arrives_is_torchs_cast_and_every_byte_is_released_once(numel, before, after):
    stored = (torch.randn(numel) * 9).to(before)
    copies, released = LateCopies(), []
    ring = PinnedRing(copies, buffer_bytes=1024)
    result = ring.begin(stored, after, lambda *span: released.append(span))
    ring.wait()
    ring.close()
    assert torch.equal(result, stored.to(after))
    assert result.dtype == after
    ends = [0, *(stop for _, stop in sorted(released))]
    assert [first for first, _ in sorted(released)] == ends[:-1]
    assert ends[-1] == stored.nbytes


def test_no_more_than_the_ring_is_ever_staged():
    tensors = [torch.randn(700 + number) for number in range(60)]
    copies = LateCopies()
    ring = PinnedRing(copies, buffer_bytes=512, buffers=3)
    results = [ring.begin(tensor, torch.float32) for tensor in tensors]
    ring.wait()
    ring.close()
    assert all(map(torch.equal, results, tensors))
    assert [buffer.nbytes for buffer in copies.buffers] == [512] * 3
    assert copies.most <= 3
    assert copies.copies == sum(-(-tensor.nbytes // 512) for tensor in tensors)


def test_a_tensor_that_is_not_contiguous_arrives_in_its_order():
    stored = torch.randn(70, 30).t()
    ring = PinnedRing(LateCopies(), buffer_bytes=256)
    result = ring.begin(stored, torch.float32)
    ring.wait()
    ring.close()
    assert torch.equal(result, stored)
    assert result.is_contiguous()


@pytest.mark.parametrize("fails_at", [0, 5])
def test_what_fails_on_the_device_is_raised_and_no_thread_is_left(fails_at):
    before = threading.active_count()
    ring = PinnedRing(LateCopies(fails_at), buffer_bytes=256)
    with pytest.raises(RuntimeError, match="the device is lost"):
        _move_all(ring, torch.randn(5000))
    ring.close()
    assert threading.active_count() == before


def _move_all(ring: PinnedRing, stored: torch.Tensor) -> None:
    ring.begin(stored, stored.dtype)
    ring.wait()


def on_a_late_device(dtype: torch.dtype | None = None, fails_at: int = -1) -> OnDevice:
    target = OnDevice(dtype=dtype)
    target._ring = PinnedRing(LateCopies(fails_at), buffer_bytes=512)
    return target


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_model_that_is_loaded_through_the_ring_is_torchs(tmp_path, kind, dtype):
    state = random_state(Net())
    folder = write_checkpoint(tmp_path, state, kind=kind, shards=3)
    shell = build_shell(Net)
    fill(shell, open_checkpoint(folder), target=on_a_late_device(dtype))
    wanted = Net()
    wanted.load_state_dict(state)
    wanted = wanted if dtype is None else wanted.to(dtype)
    for name, parameter in wanted.named_parameters():
        assert torch.equal(dict(shell.model.named_parameters())[name], parameter), name


def test_a_load_that_the_device_ends_leaves_the_model_as_it_was(tmp_path):
    folder = write_checkpoint(tmp_path, random_state(Net()), shards=2)
    model = Net()
    before = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="the device is lost"):
        fill(model, open_checkpoint(folder), target=on_a_late_device(fails_at=2))
    for name, value in model.named_parameters():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])
    assert threading.active_count() == threads


def test_a_transposed_view_of_a_key_map_goes_through_the_ring(tmp_path):
    weight = torch.randn(40, 24)
    folder = write_checkpoint(tmp_path, {"w": weight})
    model = nn.Linear(40, 24, bias=False)
    model.weight = nn.Parameter(torch.zeros(24, 40))
    from shardload import KeyMap

    fill(
        model,
        open_checkpoint(folder),
        key_map=KeyMap().rename("w", "weight").transpose("weight"),
        target=on_a_late_device(),
    )
    assert torch.equal(model.weight, weight.t())
