"""Copies tensors to a GPU through a ring of pinned buffers, which lie between mapped files and device memory.

When pageable memory is copied to a device, the calling thread waits while the driver stages it piece by piece. Here a
few threads read (and cast) the next pieces into pinned buffers while the device fetches the pieces before. A buffer is
reused once the device has copied its content, so the pinned memory is the ring's size, however large the checkpoint is.

Only `CudaCopies` uses CUDA, and it has not run on a GPU yet. The tests replace it by a class that copies late and in
another order, as a device may.
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

BUFFER_BYTES = 2**22  # bytes per piece: a copy of this size takes longer than its start
BUFFERS = 4  # the threads fill two while the device reads the other two
_READERS = 2

Arrived = Callable[[], None]
"""Returns once the device has copied the content of a staging buffer. Raises the error of the copy."""


class Copies(Protocol):
    """The operations of a device that the ring needs."""

    def staging(self, nbytes: int) -> torch.Tensor:
        """Return host memory that the device can read from: a flat uint8 tensor of `nbytes`."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor on the device that the next copies may write to."""

    def copy(self, target: torch.Tensor, staged: torch.Tensor) -> Arrived:
        """Begin to copy a staged piece to `target`, which has its shape and dtype. Called on any thread."""

    def finish(self) -> None:
        """Return when all copies are done."""


class CudaCopies:
    """Copies to a GPU on a CUDA stream of its own, so that copies overlap with reads and with the caller's work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def staging(self, nbytes: int) -> torch.Tensor:
        """Return pinned host memory."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor on the GPU."""
        made = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        # The memory may have just been freed while the caller's stream still has work to do on it.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        return made

    def copy(self, target: torch.Tensor, staged: torch.Tensor) -> Arrived:
        """Begin an asynchronous copy, and return a function that waits for it."""
        with torch.cuda.stream(self.stream):
            target.copy_(staged, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.stream)
        return done.synchronize

    def finish(self) -> None:
        """Wait for all copies on the stream."""
        self.stream.synchronize()


class PinnedRing:
    """Copies tensors to a device, and casts them on the way.

    Two threads read the pieces in the order of `begin`; for each piece a thread takes the buffer that was handed to the
    device longest ago, and waits until the device has copied its content. `wait` and `close` raise errors of a thread
    or of the device.
    """

    def __init__(self, copies: Copies, *, buffer_bytes: int = BUFFER_BYTES, buffers: int = BUFFERS) -> None:
        self._copies = copies
        self._buffer_bytes = buffer_bytes
        self._count = buffers
        self._ring: SimpleQueue[tuple[torch.Tensor, Arrived | None]] = SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None
        self._begun: deque[Future[None]] = deque()

    def empty(self, like: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the device that `begin` may copy a tensor like that into."""
        return self._copies.empty(like.shape, like.dtype)

    def begin(
        self,
        stored: torch.Tensor,
        dtype: torch.dtype,
        release: Callable[[int, int], None] | None = None,
        *,
        into: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Begin to copy a tensor, and return its result on the device, which holds the values once `wait` has returned.

        The result is `into`, or else a new tensor. `release` is called on any thread with the offsets of bytes of
        `stored` that have been read.
        """
        result = self._copies.empty(stored.shape, dtype) if into is None else into
        source, target = stored.reshape(-1), result.view(-1)
        count = self._buffer_bytes // dtype.itemsize
        for start in range(0, source.numel(), count):
            # The caller has to wait too: progress is reported when a tensor is begun, and must not run far ahead.
            while len(self._begun) >= 2 * self._count:
                self._begun.popleft().result()
            piece = slice(start, start + count)
            first = start * source.element_size()
            self._begun.append(
                self._readers().submit(self._move, source[piece], target[piece], first, release)
            )
        return result

    def wait(self) -> None:
        """Return when the device holds every tensor that was begun."""
        while self._begun:
            self._begun.popleft().result()
        self._copies.finish()

    def close(self) -> None:
        """End the threads after their current pieces have been copied, and free the buffers."""
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
            # Inference mode is set per thread, and the caller's tensors may have been made in it.
            with torch.inference_mode():
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
