"""Workers: threads that compute blocks ahead of who takes them, each on one core."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from typing_extensions import Self

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 8
_AHEAD = 2
"""Blocks a worker may be ahead of who takes them."""


class Workers:
    """A pool whose threads ask torch for one thread each; a `with` block ends them.

    Blocks are small, and torch's own threads would meet after each of their many operations: on a machine that is
    busy besides, each meeting waits for whoever is not running.
    """

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._count = min(self._threads, _MOST)
        self._pool: ThreadPoolExecutor | None = None

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
            self._pool = ThreadPoolExecutor(
                self._count, "shardload-merge", initializer=_be_one_thread, initargs=(self._threads,)
            )
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


def _be_one_thread(before: int) -> None:
    """Let torch use this thread alone for what this thread asks of it."""
    torch.set_num_threads(1)
    # torch notes the last number that any thread sets, for threads to come: they shall get what they would have got.
    other = Thread(target=torch.set_num_threads, args=(before,))
    other.start()
    other.join()
