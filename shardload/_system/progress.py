"""Progress of a load: bytes, rate and the shard, as a bar on stderr or as calls of the caller's function."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Progress:
    """Where a load is: the shard at hand, bytes done and in all, tensors done, seconds since its start.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> seen = []
        >>> report = shardload.fill(
        ...     torch.nn.Linear(4, 2), shardload.open_checkpoint("tiny"), progress=seen.append
        ... )
        >>> [(progress.tensors, progress.done_bytes, progress.total_bytes) for progress in seen]
        [(1, 8, 40), (2, 40, 40)]

    `progress=` takes a function that is called with one after every tensor, or True, False or None for a bar.
    """

    shard: str
    done_bytes: int
    total_bytes: int
    tensors: int
    seconds: float


ProgressOption = bool | Callable[[Progress], object] | None
"""None: a bar where stderr is a terminal. True: always a bar. False: nothing. A function: called with Progress."""


class ProgressMeter:
    """Tells `option` about every tensor; a `with` block closes the bar, which says what is `doing`."""

    def __init__(self, option: ProgressOption, total_bytes: int, doing: str = "loading") -> None:
        self._call = option if callable(option) else None
        self._total = total_bytes
        self._done = 0
        self._tensors = 0
        self._start = time.perf_counter()
        self._shard = ""
        self._bar: Any = None
        if self._call is None and (option or (option is None and sys.stderr.isatty())):
            from tqdm import tqdm  # 0.05 s that a load without a bar does not pay

            self._bar = tqdm(
                total=total_bytes,
                unit="B",
                unit_scale=True,
                leave=False,
                desc=doing,
            )

    def shard(self, name: str) -> None:
        """Say which shard is read now."""
        self._shard = name
        if self._bar is not None:
            self._bar.set_postfix_str(name, refresh=False)

    def tensor(self, nbytes: int) -> None:
        """Count one tensor."""
        self._done += nbytes
        self._tensors += 1
        if self._bar is not None:
            self._bar.update(nbytes)
        if self._call is not None:
            elapsed = time.perf_counter() - self._start
            self._call(Progress(self._shard, self._done, self._total, self._tensors, elapsed))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
