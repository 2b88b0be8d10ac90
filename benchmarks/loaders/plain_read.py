"""No loader and no tensors: two threads read the files from beginning to end, each into its own buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = "plain parallel read of the files"
_BLOCK = 8 * 2**20
_THREADS = 2


def prepare(job: dict[str, Any]) -> Callable[[], None]:
    import os
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import torch  # noqa: F401 - all other loaders import torch too: only the reading should differ

    def load() -> None:
        blocks = iter(
            [
                (path, start)
                for path in sorted(Path(job["folder"]).glob(f"*.{job['suffix']}"))
                for start in range(0, path.stat().st_size, _BLOCK)
            ]
        )

        def read() -> None:
            buffer = bytearray(_BLOCK)
            for path, start in blocks:
                descriptor = os.open(path, os.O_RDONLY)
                os.preadv(descriptor, [buffer], start)
                os.close(descriptor)

        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [pool.submit(read) for _ in range(_THREADS)]:
                done.result()

    return load
