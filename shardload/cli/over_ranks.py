"""A command that torchrun starts on several ranks: what they say becomes one table, on the first rank alone."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from shardload.cli import output

if TYPE_CHECKING:
    from shardload.loading.report import Report


def world() -> int:
    """Return the number of ranks that torchrun started this process among; 1 without torchrun."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in names) else 1


def begin() -> dict[str, Any]:
    """Join the process group of torchrun; return the keywords by which a model is sharded over all of it, by FSDP."""
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    kind = "cuda" if torch.cuda.is_available() and torch.cuda.device_count() > local_rank() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(local_rank())
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    return {"device_mesh": init_device_mesh(kind, (distributed.get_world_size(),), mesh_dim_names=("dp",))}


def local_rank() -> int:
    """Return the number of this rank among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def gathered(report: Report) -> list[dict[str, Any]] | None:
    """Return what each rank read, took and needed, on the first rank; None on the others.

    It goes by the store and not by a collective: gloo's thread lets go of a collective's tensors when it comes to it,
    and aborts a process that ends meanwhile.
    """
    from torch import distributed
    from torch.distributed import distributed_c10d

    memory = report.memory
    own = {
        "rank": distributed.get_rank(),
        "nbytes": report.nbytes,
        "anon_added": memory.after.anon - memory.before.anon if memory else 0,
        "anon_peak": memory.peak.anon - memory.before.anon if memory else 0,
        "stated": report.stated.peak if report.stated else 0,
        "seconds": sum(report.seconds.values()),
    }
    store = distributed_c10d.PrefixStore("shardload/table", distributed_c10d._get_default_store())
    store.set(str(own["rank"]), json.dumps(own))
    first = own["rank"] == 0
    rows = (
        [json.loads(store.get(str(rank))) for rank in range(distributed.get_world_size())] if first else None
    )
    distributed.destroy_process_group()
    return rows


def rank_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of ranks, and which was the slowest."""
    size = output.size_of
    table: list[tuple[str, ...]] = [("rank", "read", "anonymous", "peak", "stated before", "time")]
    table += [
        (
            str(row["rank"]),
            size(row["nbytes"]),
            size(row["anon_added"]),
            size(row["anon_peak"]),
            size(row["stated"]),
            f"{row['seconds']:.2f} s",
        )
        for row in rows
    ]
    first, *lines = output.columns(table, right=(0, 1, 2, 3, 4, 5), indent="  ")
    slowest = max(rows, key=lambda row: float(row["seconds"]))
    return [
        output.paint(first, dim=True),
        *lines,
        f"  slowest: rank {slowest['rank']}, {slowest['seconds']:.2f} s",
    ]
