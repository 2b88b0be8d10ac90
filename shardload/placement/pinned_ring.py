"""The road to a GPU: a ring of pinned buffers between mapped files and memory of the device.

A copy to the device from pageable memory waits for the driver to stage it, piece by piece, on the calling thread. Here
few threads read (and cast) the next pieces into pinned buffers while the device fetches the ones before. A buffer is
used again once the device has taken what it held: no more than the ring is ever pinned, however large the checkpoint.

Only `CudaCopies` knows a GPU. This has not run on one yet: the tests put another in its place, which copies later and
out of step as a device does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

import torch

from shardload._system.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

BUFFER_BYTES = 2**22  # a piece: large enough that its copy costs more than its start
BUFFERS = 4  # two that are filled, and two that the device fetches from
_READERS = 2

Arrived = Callable[[], None]
"""Returns once the device has taken what a staging buffer held. Raises what went wrong there."""


class Copies(Protocol):
    """What the ring asks of a device."""

    def staging(self, nbytes: int) -> torch.Tensor:
        """Return bytes of host memory that the device can fetch from: a flat uint8 tensor."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the device that the next copies may write to."""

    def copy(self, target: torch.Tensor, staged: torch.Tensor) -> Arrived:
        """Begin to copy a staged piece to its place, of the same shape and dtype; asked on any thread."""

    def finish(self) -> None:
        """Return when everything that was begun has arrived."""


class CudaCopies:
    """Copies on a stream of their own, so that they overlap with reading and with what the caller computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def staging(self, nbytes: int) -> torch.Tensor:
        """Return pinned memory."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the GPU."""
        made = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        # It may have been freed a moment ago, by work that the caller's stream has still to do.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        return made

    def copy(self, target: torch.Tensor, staged: torch.Tensor) -> Arrived:
        """Begin an asynchronous copy; an event tells when it is done."""
        with torch.cuda.stream(self.stream):
            target.copy_(staged, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.stream)
        return done.synchronize

    def finish(self) -> None:
        """Wait for the stream."""
        self.stream.synchronize()


class PinnedRing:
    """Moves tensors to a device, cast on the way. `wait` returns when all that was begun is there.

    Pieces are read in the order in which they are begun, by two threads; each waits for the buffer that was given to
    the device longest ago. `wait` and `close` raise what went wrong on a thread or on the device.
    """

    def __init__(self, copies: Copies, *, buffer_bytes: int = BUFFER_BYTES, buffers: int = BUFFERS) -> None:
        self._copies = copies
        self._buffer_bytes = buffer_bytes
        self._count = buffers
        self._ring: SimpleQueue[tuple[torch.Tensor, Arrived | None]] = SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None
        self._begun: deque[Future[None]] = deque()

    def begin(
        self, stored: torch.Tensor, dtype: torch.dtype, release: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """Return a tensor of the device that holds `stored`, in `dtype`, once `wait` has returned.

        `release` is called with the offsets of bytes of `stored` that have been read, on any thread.
        """
        result = self._copies.empty(stored.shape, dtype)
        source, target = stored.reshape(-1), result.view(-1)
        count = self._buffer_bytes // dtype.itemsize
        for start in range(0, source.numel(), count):
            # Who begins is held back too: progress is told when a tensor is begun.
            while len(self._begun) >= 2 * self._count:
                self._begun.popleft().result()
            piece = slice(start, start + count)
            first = start * source.element_size()
            self._begun.append(
                self._readers().submit(self._move, source[piece], target[piece], first, release)
            )
        return result

    def wait(self) -> None:
        """Return when everything that was begun has arrived."""
        while self._begun:
            self._begun.popleft().result()
        self._copies.finish()

    def close(self) -> None:
        """End the threads, once what they are at has arrived, and give the buffers back."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            self._copies.finish()
        self._begun.clear()
        self._ring = SimpleQueue()

    def _move(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        first: int,
        release: Callable[[int, int], None] | None,
    ) -> None:
        buffer, arrived = self._ring.get()
        try:
            if arrived is not None:
                arrived()
                arrived = None
            staged = buffer[: target.nbytes].view(target.dtype)
            with (
                torch.inference_mode()
            ):  # a thread has modes of its own, and the caller's tensors may want it
                staged.copy_(source)
                if release is not None:
                    release(first, first + source.nbytes)
                arrived = self._copies.copy(target, staged)
        finally:
            self._ring.put((buffer, arrived))

    def _readers(self) -> ThreadPoolExecutor:
        if self._pool is None:
            for _ in range(self._count):
                self._ring.put((self._copies.staging(self._buffer_bytes), None))
            self._pool = worker_pool(_READERS, "shardload-read")
        return self._pool
