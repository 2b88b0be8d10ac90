"""StreamedShard: tensors of a file that is far away, read straight into their memory while earlier ones are used."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

from shardload.checkpoint.shard import memory_of, packed_memory, strided_rows, torch_dtype, touch
from shardload.checkpoint.sources.runs import AHEAD, CONNECTIONS, GAP, RUN, runs_of
from shardload.tensor_ref import torch_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    import torch
    from typing_extensions import Self

    from shardload.checkpoint.sources.runs import Part, Run
    from shardload.checkpoint.sources.source import SourceFile
    from shardload.tensor_ref import TensorRef


class StreamedShard:
    """Weight files that do not come onto this disk, used as a `with` block; `tensor(ref)` returns their tensors.

    `opened` returns a file by its name. `refs` are the tensors that will be wanted, in this order: the next ones are
    read, on several connections, while one is used. Each has memory of its own. Raises what its source raises;
    CorruptError where a file was changed.
    """

    def __init__(self, opened: Callable[[str], SourceFile], refs: Iterable[TensorRef] = ()) -> None:
        self._opened = lru_cache(maxsize=None)(opened)
        self._waiting = deque(refs)
        self._begun: deque[_Reading] = deque()
        self._held = 0  # bytes of what is begun

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the requests on their way end by themselves: each keeps the memory that it writes to.
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        self._begun.clear()

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """Return the stored tensor in its stored dtype; its storage covers this tensor alone."""
        self._begin()
        if not self._begun or self._begun[0].ref != ref:
            return self._alone(ref)
        reading = self._begun.popleft()
        self._held -= ref.nbytes
        self._begin(ref.nbytes)
        try:
            for job in reading.jobs:
                job.result()
        except BaseException:
            self._waiting.clear()
            raise
        return reading.tensor()

    def release(self, ref: TensorRef, first: int = 0, stop: int | None = None) -> None:
        """Do nothing: there are no pages of a file."""

    def _alone(self, ref: TensorRef) -> torch.Tensor:
        """Return a tensor that was not told to be next; small ones share requests."""
        alone = _Reading(ref)
        for offset, memory in alone.parts if ref.span.nbytes < GAP else ():
            memory[:] = self._opened(ref.shard).read_at(offset, len(memory))
        if ref.span.nbytes >= GAP:
            self._opened(ref.shard).read_many(alone.parts)
        return alone.tensor()

    def _begin(self, used: int = 0) -> None:
        """Begin to read what comes next, as far as there is room; small tensors that touch are read together."""
        while self._waiting:
            size, name = self._waiting[0].nbytes, self._waiting[0].shard
            if self._held + size > AHEAD and (self._begun or used):
                return
            batch = [_Reading(self._waiting.popleft())]
            while self._waiting and self._waiting[0].shard == name and size + self._waiting[0].nbytes <= RUN:
                size += self._waiting[0].nbytes
                batch.append(_Reading(self._waiting.popleft()))
            self._held += size
            self._begun.extend(batch)
            for run in runs_of([part for reading in batch for part in reading.parts], RUN):
                served = [reading for reading in batch if reading.wants(run)]
                job = self._pool.submit(self._fetch, name, run, served)
                for reading in served:
                    reading.jobs.append(job)

    def _fetch(self, name: str, run: Run, served: Sequence[_Reading]) -> None:  # noqa: ARG002 - whose memory lives as long
        for _, memory in run.parts:
            touch(memory)
        self._opened(name).read_many(run.parts)


class _Reading:
    """One tensor while its bytes arrive: its memory, and the jobs that fill it."""

    def __init__(self, ref: TensorRef) -> None:
        self.ref = ref
        self.jobs: list[Future[None]] = []
        self._row = strided_rows(ref)
        self._dtype = torch_dtype(ref)
        nbytes = ref.span.nbytes if self._row is None else ref.nbytes
        self._flat = packed_memory(nbytes, self._dtype)

    @property
    def parts(self) -> list[Part]:
        """The bytes of the file, and where each belongs."""
        if not self._flat.nbytes:
            return []
        memory, start = memory_of(self._flat), self.ref.span.start
        if self._row is None or self.ref.strides is None:
            return [(start, memory)]
        step, row = self.ref.strides[0] * self._dtype.itemsize, self._row
        rows = range(self.ref.shape[0])
        return [(start + number * step, memory[number * row : (number + 1) * row]) for number in rows]

    def wants(self, run: Run) -> bool:
        """Whether a run has bytes of the tensor."""
        return run.start < self.ref.span.stop and self.ref.span.start < run.stop

    def tensor(self) -> torch.Tensor:
        """Return the tensor, once all is there."""
        ref, flat = self.ref, self._flat
        if ref.strides is not None and self._row is None:
            return flat.as_strided(ref.shape, ref.strides)
        return flat.view(torch_shape(ref.dtype, ref.shape) if self._row is None else ref.shape)
