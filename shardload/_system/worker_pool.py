"""Pools whose threads ask torch for one thread each: a worker a core, and no worker waits for another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import torch


def worker_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of at most `workers` threads, called `name`, in which torch computes on the calling thread alone.

    torch's own threads would meet after each operation: on a machine that is busy besides, each meeting waits for
    whoever is not running. The number of threads stays as it was for all other threads, those to come too.
    """
    return ThreadPoolExecutor(workers, name, initializer=_be_one_thread, initargs=(torch.get_num_threads(),))


def _be_one_thread(before: int) -> None:
    torch.set_num_threads(1)
    # torch notes the last number that any thread sets, for threads to come: they shall get what they would have got.
    other = Thread(target=torch.set_num_threads, args=(before,))
    other.start()
    other.join()
