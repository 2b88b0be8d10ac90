"""Saves a distributed checkpoint from every rank: `python -m tests.distributed.dcp FOLDER` on four ranks.

Tensors are cut in rows, in columns, into a grid, unevenly and so that a rank has nothing; a model under FSDP and tensor
parallelism has strided cuts. `whole.pt` is what they are without ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import shardload
from tests.distributed.nets import NETS
from tests.distributed.row import fsdp2, fsdp2_tp
from tests.distributed.spawn import leave, say

CUTS = {
    "grid": ((7, 5), (Shard(0), Shard(1))),
    "rows": ((9, 4), (Shard(0), Replicate())),
    "twice": ((10, 3), (Shard(0), Shard(0))),
    "columns": ((4, 9), (Replicate(), Shard(1))),
    "few": ((3, 2), (Shard(0), Shard(0))),
    "same": ((6,), (Replicate(), Replicate())),
}


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(3)
    whole = {name: torch.randn(shape) for name, (shape, _) in CUTS.items()}
    cut = {name: distribute_tensor(whole[name], mesh, places) for name, (_, places) in CUTS.items()}
    model = NETS["Uneven"]()
    whole |= {f"net.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    fsdp2_tp(model, mesh)
    cut |= {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {name: tensor * 2 for name, tensor in cut.items()}
    state = {"app": {"model": cut, "optim": {"state": moments, "lr": 0.1}}, "step": 4}
    checkpoint.save(state, checkpoint_id=folder)
    if dist.get_rank() == 0:
        torch.save(whole, Path(folder).parent / "whole.pt")
    dist.barrier()
    say(**filled_again(folder, whole))
    leave()


def filled_again(folder: str, whole: dict[str, torch.Tensor]) -> dict:
    """Fill a model that is cut in another way than the one that was saved."""
    shell = shardload.build_shell(NETS["Uneven"])
    fsdp2(shell.model, init_device_mesh("cpu", (dist.get_world_size(),)))
    checkpoint = shardload.open_checkpoint(folder, only=["net.*"])
    report = shardload.fill(shell, checkpoint, key_map={"net.{...}": "{...}"})
    wrong = [
        name
        for name, tensor in shell.model.state_dict().items()
        if not torch.equal(tensor.full_tensor(), whole[f"net.{name}"])
    ]
    return {"wrong": wrong, "read": report.nbytes, "stored": checkpoint.nbytes}


if __name__ == "__main__":
    main(*sys.argv[1:])
