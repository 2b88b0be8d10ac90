"""One rank of two: fills shards of a layer from packed weights, and prints what each gets; `packed FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import shardload
from tests.distributed.spawn import leave, say

SHAPES = {"gptq": (64, 96), "awq": (64, 96), "fp8": (200, 556), "nf4": (64, 96)}


class Net(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.layer = nn.Linear(columns, rows, bias=False)


def plain_layer(_config: object) -> Net:
    """Make the net of GPTQ's layer from any config, as a command line names it."""
    return Net(*SHAPES["gptq"])


def loaded(kind: str, read: str, folder: Path, mesh, make):
    """Return this rank's model and the report of its load."""
    options = {"dtype": "bfloat16", "read": read, "timeout": 60}
    if kind == "one call":
        model = shardload.from_pretrained(folder, model_class=lambda _: make(), device_mesh=mesh, **options)
        return model, shardload.report_of(model)
    shell = shardload.build_shell(make)
    if kind == "rows of all":
        fully_shard(shell.model, mesh=mesh)
    elif kind == "rows of a slice":
        fully_shard(shell.model, mesh=init_device_mesh("cpu", (1, 2), mesh_dim_names=("pp", "dp"))["dp"])
    else:
        style = ColwiseParallel() if kind == "rows" else RowwiseParallel()
        parallelize_module(shell.model, mesh, {"layer": style})
    return shell.model, shardload.fill(shell, shardload.open_checkpoint(folder), **options)


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for scheme, shape in SHAPES.items():
        at = Path(folder) / scheme
        whole = Net(*shape)
        shardload.fill(whole, shardload.open_checkpoint(at), dtype="bfloat16")
        for kind in ("rows of all", "rows of a slice", "rows", "columns", "one call"):
            for read in ("slice", "once"):
                try:
                    model, report = loaded(kind, read, at, mesh, lambda shape=shape: Net(*shape))
                    equal = torch.equal(model.layer.weight.full_tensor(), whole.layer.weight)
                    said = {"equal": equal, "nbytes": report.nbytes}
                except shardload.ShardloadError as error:
                    said = {"equal": False, "error": str(error)}
                say(scheme=scheme, kind=kind, read=read, **said)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
