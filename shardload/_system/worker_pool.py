"""Thread pools in which torch computes with one thread per worker, so that no worker waits for another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import torch


def worker_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of at most `workers` threads, named `name`, in which torch computes on the calling thread alone.

    torch's own threads join after each operation; on a busy machine each join waits for the thread that is not
    running. For all other threads, new ones included, torch's number of threads stays as it was.
    """
    return ThreadPoolExecutor(workers, name, initializer=_be_one_thread, initargs=(torch.get_num_threads(),))


def _be_one_thread(before: int) -> None:
    torch.set_num_threads(1)
    # A new thread gets the number that any thread set last. Setting the old number again keeps that for new threads.
    other = Thread(target=torch.set_num_threads, args=(before,))
    other.start()
    other.join()
