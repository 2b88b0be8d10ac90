"""Measures reading a region of each matrix of a cold checkpoint: seconds, and bytes read per byte asked for.

`python -m benchmarks.probes.partial FOLDER rows|columns` prints the figures of shardload and of safetensors' slices.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from benchmarks.measure import evict
from shardload import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from shardload import Checkpoint

Region = tuple[slice, slice]


def main() -> None:
    folder, kind = sys.argv[1:]
    checkpoint = open_checkpoint(folder)
    regions = {
        name: _middle(ref.shape, kind) for name, ref in checkpoint.tensors.items() if len(ref.shape) == 2
    }
    figures: dict[str, float] = {}
    sums: list[float] = []
    for label, read in (("ours", _ours(checkpoint)), ("safetensors", _slices(checkpoint, folder))):
        evict(folder)
        before, started, asked, total = _read_bytes(), time.monotonic(), 0, 0.0
        for name, region in regions.items():
            part = read(name, region)
            asked += part.numel() * part.element_size()
            total += float(part.double().sum())
        figures[f"{label}_s"] = time.monotonic() - started
        figures[f"{label}_times"] = (_read_bytes() - before) / asked
        sums.append(total)
    if sums[0] != sums[1]:
        raise SystemExit(f"shardload and safetensors read different values: {sums}")
    print(json.dumps(figures))


def _middle(shape: tuple[int, ...], kind: str) -> Region:
    """Return the region of the middle quarter of the rows or columns."""
    size = shape[0] if kind == "rows" else shape[1]
    part = slice(size * 3 // 8, size * 5 // 8)
    return (part, slice(None)) if kind == "rows" else (slice(None), part)


def _ours(checkpoint: Checkpoint) -> Callable[[str, Region], torch.Tensor]:
    return checkpoint.read


def _slices(checkpoint: Checkpoint, folder: str) -> Callable[[str, Region], torch.Tensor]:
    files = {
        shard.name: safe_open(str(Path(folder, shard.name)), framework="pt") for shard in checkpoint.shards
    }

    def read(name: str, region: Region) -> torch.Tensor:
        return files[checkpoint.tensors[name].shard].get_slice(name)[region]

    return read


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


if __name__ == "__main__":
    main()
