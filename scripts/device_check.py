"""Runs on this machine's own device what the tests run on its processor, in under four minutes.

    python scripts/device_check.py --ranks                # CUDA: NCCL, one rank a GPU, as far as there are GPUs
    python scripts/device_check.py --ranks --device cpu   # gloo, to test the check itself
    python scripts/device_check.py --device-map           # one GPU: a model over cuda, memory and disk

`--ranks` is the matrix of tests/distributed: every way to shard a model over ranks, every model, every way to fill it.
Each parameter has to be equal, bit for bit, to that of one process, and the forward equal too. A layout that wants more
ranks than there are GPUs runs on a mesh of one rank, and the report says so. The exit code is 0 where all that ran is
equal, 1 where something is not, and 2 where nothing could run.

`--device-map` lays a Llama-like model over the GPU, the processor's memory and the disk, and compares forward, state
dict, LoRA gradients and peak device memory with the same model on the GPU alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from shardload import save  # noqa: E402
from tests.distributed.nets import NETS  # noqa: E402
from tests.distributed.row import LAYOUTS, cells  # noqa: E402
from tests.distributed.spawn import run_ranks  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

BUDGET = 225  # seconds; what has not run by then is stopped
LAYOUTS_HERE = [layout for layout in LAYOUTS if not layout.startswith("pipeline")]  # stages are plain models


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check, print what ran where, and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.device_map:
        from tests.placement.on_cuda import check

        return check()
    gpus = torch.cuda.device_count() if options.device == "cuda" else 99
    gpus = gpus if options.gpus is None else min(gpus, options.gpus)
    if not gpus:
        print(
            f"no CUDA device here (torch {torch.__version__}): nothing ran; --device cpu runs it on the processor"
        )
        return 2
    print(_machine(options.device, gpus), flush=True)
    started = time.monotonic()
    layouts = options.only or LAYOUTS_HERE
    worlds: dict[int, list[str]] = {}
    for layout in layouts:
        wanted = LAYOUTS[layout][0]
        worlds.setdefault(wanted if gpus >= wanted else 1, []).append(layout)
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in NETS.items():
            torch.manual_seed(7)
            save(kind(), Path(folder) / name, key_map=getattr(kind, "key_map", None), max_shard_size="40kB")
        for world, chosen in worlds.items():
            left = BUDGET - (time.monotonic() - started)
            good += _rows(world, chosen, folder, options.device, left)
    print(f"{good} of {len(layouts)} layouts are equal to one process, in {time.monotonic() - started:.0f} s")
    return 0 if good == len(layouts) else 1


def _rows(world: int, layouts: list[str], folder: str, device: str, left: float) -> int:
    """Run layouts over the same ranks, for at most `left` seconds; return how many are equal to one process."""
    env = {"SHARDLOAD_TEST_DEVICE": device}
    ranks = run_ranks("tests.distributed.row", world, ",".join(layouts), folder, timeout=left, env=env)
    good = 0
    for layout in layouts:
        lines = [line for rank in ranks for line in rank.lines if line["layout"] == layout]
        wrong = [line for line in lines if line["said"] != "ok"]
        whole, wanted = world * len(list(cells(layout))), LAYOUTS[layout][0]
        over = f"{world} rank{'s' * (world > 1)}" + (
            f" (a mesh of one, not of {wanted})" if world < wanted else ""
        )
        ended = "" if len(lines) == whole else f", {whole - len(lines)} did not run"
        print(f"{layout:<12}  {over}: {len(lines) - len(wrong)} of {whole} fills equal{ended}", flush=True)
        for line in wrong[:5]:
            print(f"  {line['cell']}: {line['said'].splitlines()[0]}")
        good += not wrong and len(lines) == whole
    for rank in [rank for rank in ranks if rank.code][:1]:
        print("  a rank ended by an error, or was stopped:")
        print("    " + "\n    ".join(rank.said.strip().splitlines()[-8:]))
    return good


def _machine(device: str, gpus: int) -> str:
    if device == "cpu":
        return f"processor and gloo, torch {torch.__version__}: no GPU takes part in this check"
    ended = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    driver = (
        ended.stdout.strip().splitlines()[0] if ended.returncode == 0 and ended.stdout.strip() else "unknown"
    )
    name = torch.cuda.get_device_name(0)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return f"{gpus} x {name}, driver {driver}, NCCL {nccl}, torch {torch.__version__}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python scripts/device_check.py", description=__doc__.splitlines()[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ranks", action="store_true", help="models sharded over ranks")
    what.add_argument("--device-map", action="store_true", help="a model over cuda, memory and disk")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--gpus", type=int, help="use no more; with --device cpu: as if there were so many")
    parser.add_argument(
        "--only", nargs="+", choices=LAYOUTS_HERE, metavar="LAYOUT", help=f"of {', '.join(LAYOUTS_HERE)}"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
