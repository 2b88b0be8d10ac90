"""One rank of two: fills shards of a layer from packed weights, and prints what each gets; `packed FOLDER`."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import shardload
from tests.distributed.spawn import leave


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(96, 64, bias=False)


def main():
    folder = sys.argv[1]
    dist.init_process_group("gloo")
    whole = Net()
    shardload.fill(whole, shardload.open_checkpoint(folder), dtype="bfloat16")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for kind in ("rows of all", "rows", "columns"):
        for read in ("slice", "once"):
            shell = shardload.build_shell(Net)
            if kind == "rows of all":
                fully_shard(shell.model, mesh=mesh)
            else:
                style = ColwiseParallel() if kind == "rows" else RowwiseParallel()
                parallelize_module(shell.model, mesh, {"layer": style})
            report = shardload.fill(shell, shardload.open_checkpoint(folder), dtype="bfloat16", read=read)
            found = shell.model.layer.weight.full_tensor()
            line = {
                "kind": kind,
                "read": read,
                "equal": torch.equal(found, whole.layer.weight),
                "nbytes": report.nbytes,
            }
            print(json.dumps(line), flush=True)
    leave()


if __name__ == "__main__":
    main()
