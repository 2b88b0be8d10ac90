"""Architectures in processes of their own: one that crashes or hangs is a row, not the end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import torch

from scripts.architectures.trial import Result, told, try_architecture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection


def results(names: Sequence[str], mode: str, processes: int, seconds: float) -> Iterator[Result]:
    """Yield the result of each architecture as it is done; `processes` run at a time."""
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # before the first fork: a pool of threads does not survive one
    try_architecture("llama", mode)  # imports what every fork needs
    gc.freeze()
    context = multiprocessing.get_context("fork")
    left = list(reversed(names))
    running: dict[Connection, tuple[str, Any, float]] = {}
    while left or running:
        while left and len(running) < processes:
            name = left.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(name, mode, sender))
            process.start()
            sender.close()
            running[receiver] = (name, process, time.monotonic())
        ready = wait(list(running), timeout=1)
        for receiver in list(running):
            name, process, start = running[receiver]
            late = time.monotonic() - start > seconds
            if receiver not in ready and not late:
                continue
            del running[receiver]
            yield _ended(name, mode, receiver if receiver in ready else None, process, seconds)


def _child(name: str, mode: str, sender: Connection) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    try:
        result = try_architecture(name, mode)
    except Exception as error:  # noqa: BLE001 - a fault of this script is a row too
        result = Result(name, mode, outcome="crashed", reason=told(error))
    sender.send(result)
    sender.close()


def _ended(name: str, mode: str, receiver: Connection | None, process: Any, seconds: float) -> Result:
    if receiver is None:
        process.kill()
        process.join()
        return Result(
            name, mode, outcome="crashed", reason=f"not done after {seconds:.0f} s", seconds=seconds
        )
    try:
        result: Result = receiver.recv()
    except EOFError:
        process.join()
        return Result(name, mode, outcome="crashed", reason=f"the process ended with {process.exitcode}")
    process.join(timeout=5)
    if process.is_alive():
        process.kill()
        process.join()
    return result
