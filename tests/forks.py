"""Children that are forked while other threads load: `python -m tests.forks --count 2000` counts those that hang."""

from __future__ import annotations

import argparse
import faulthandler
import os
import tempfile
import threading
from collections import Counter

import torch
from torch import nn

import shardload

PATIENCE = 120  # seconds: a child that takes longer hangs, and prints where


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)


def sweep(count: int) -> Counter[str]:
    """Fork `count` children while two threads build shells and load; each child does both."""
    torch.set_num_threads(1)
    folder = tempfile.mkdtemp()
    shardload.save(Net(), folder)
    stop = threading.Event()
    seen: Counter[str] = Counter()

    def once() -> None:
        shardload.build_shell(Net)
        shardload.from_pretrained(folder, model_class=lambda _config: Net(), config={}, dtype="float16")

    def loop() -> None:
        while not stop.is_set():
            once()

    # The first forks fall into the first imports of the threads.
    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            once()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        seen["loads" if status == 0 else f"ends with status {status}"] += 1
    stop.set()
    for thread in threads:
        thread.join()
    return seen


def main() -> None:
    """Print what became of the children."""
    parser = argparse.ArgumentParser(prog="python -m tests.forks", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="children (default: 2000)")
    print(dict(sweep(parser.parse_args().count)))


if __name__ == "__main__":
    main()
