"""Shows the progress of a load: a bar on stderr, or calls of the caller's function."""

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
    """The progress of a load: the current shard, bytes done, bytes in total, tensors done, seconds since the start.

        >>> import torch, shardload
        >>> files = shardload.save(torch.nn.Linear(4, 2), "tiny")
        >>> seen = []
        >>> report = shardload.fill(
        ...     torch.nn.Linear(4, 2), shardload.open_checkpoint("tiny"), progress=seen.append
        ... )
        >>> [(progress.tensors, progress.done_bytes, progress.total_bytes) for progress in seen]
        [(1, 8, 40), (2, 40, 40)]

    `progress=` takes a function, which is called with a Progress after every tensor, or True, False or None: True
    shows a bar, False shows none, and None shows one when stderr is a terminal.
    """

    shard: str
    done_bytes: int
    total_bytes: int
    tensors: int
    seconds: float


ProgressOption = bool | Callable[[Progress], object] | None
"""None: a bar when stderr is a terminal. True: always a bar. False: nothing. A function: called with a Progress."""


class ProgressMeter:
    """Shows progress as `option` says; the `with` block closes the bar. `doing` is the label of the bar."""

    def __init__(self, option: ProgressOption, total_bytes: int, doing: str = "loading") -> None:
        self._call = option if callable(option) else None
        self._total = total_bytes
        self._done = 0
        self._tensors = 0
        self._start = time.perf_counter()
        self._shard = ""
        self._bar: Any = None
        if self._call is None and (option or (option is None and sys.stderr.isatty())):
            from tqdm import tqdm  # the import takes 0.05 s, and most loads show no bar

            self._bar = tqdm(
                total=total_bytes,
                unit="B",
                unit_scale=True,
                leave=False,
                desc=doing,
            )

    def shard(self, name: str) -> None:
        """Set the name of the shard that is read now."""
        self._shard = name
        if self._bar is not None:
            self._bar.set_postfix_str(name, refresh=False)

    def tensor(self, nbytes: int) -> None:
        """Count a tensor of `nbytes` bytes and show the progress."""
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
