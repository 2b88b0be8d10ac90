"""Workers: threads that compute blocks ahead of the consumer, each on one core."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

import torch

from shardload._system.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

    from typing_extensions import Self

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 8
_A_THREAD = 12 * 10**6  # bytes: one worker takes up to 26 MB, eight take 120 MB (MKL's buffers for sgemm)
_AHEAD = 2
"""Blocks that may be computed ahead, beyond one for each worker."""


class Workers:
    """A pool whose threads let torch use one thread each, because blocks are small; a `with` block ends them."""

    def __init__(self) -> None:
        self._count = min(torch.get_num_threads(), _MOST)
        self._pool: ThreadPoolExecutor | None = None

    @property
    def work_space(self) -> int:
        """Bytes that the threads compute in: blocks, and the buffers that BLAS keeps for each thread."""
        return self._count * _A_THREAD

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; the next call starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(item)` for every item, in order, computed a few items ahead. Raises what it raises."""
        if self._pool is None:
            self._pool = worker_pool(self._count, "shardload-merge")
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > self._count + _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
