"""Two stages of a pipeline: the first has the embedding and the first block, the last one all else.

Each is a rank, or ranks of its own that hold it together, on a slice of one mesh.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from shardload import attach_lora, build_shell, fill, open_checkpoint

STAGES = (["embed*", "layers.0.*"], ["layers.1-9.*"])
OF_LAST = {
    "Uneven": ["head*"],
    "Experts": ["experts", "gains"],
    "Fused": ["qkv*"],
    "Renamed": ["[qkv].*"],
    "Buffers": ["norm*"],
    "OwnLoader": ["own*"],
}
"""What a model has beside its blocks, in the last stage. The others have their embedding there too, as output layer."""
NO_FORWARD = {"Fused", "Renamed", "OwnLoader"}
"""Models that use their embedding at the end too: the last stage has none."""


def stage_of(model, number: int):
    """Leave in a model what belongs to a stage, under its own names."""
    others = ["layers.1", "head", "qkv", "norm", "own"] if number == 0 else ["embed", "layers.0"]
    for name in others:
        parent, _, leaf = name.rpartition(".")
        if leaf in model.get_submodule(parent)._modules:
            model.get_submodule(parent)._modules[leaf] = nn.Identity()
    if number == 0:
        for name in ("experts", "gains", "positions"):
            model._parameters.pop(name, None)
            model._buffers.pop(name, None)
    return model


def patterns_of(net: str, kind: type[nn.Module], number: int) -> list[str]:
    """Return what a stage reads of a checkpoint."""
    before = "old." if hasattr(kind, "key_map") else ""
    patterns = list(STAGES[number])
    if number == 1:
        patterns += OF_LAST.get(net, [])
        patterns += ["embed*"] if net != "Uneven" else []
    return [before + pattern for pattern in patterns]


def filled_stage(net: str, kind: type[nn.Module], folder: Path, mesh, shard, options: dict, adapter=False):
    """Return this rank's stage, filled, and the report; `shard` cuts it over the rest of the mesh."""
    number = mesh.get_coordinate()[0]
    shell = build_shell(lambda: stage_of(kind(), number))
    if adapter:
        attach_lora(shell.model, r=2, alpha=4, targets=[f"layers.{number}.up"], seed=0)
    if shard is not None:
        shard(shell.model, mesh[mesh.mesh_dim_names[1]])
    checkpoint = open_checkpoint(folder, only=patterns_of(net, kind, number))
    return shell.model, fill(shell, checkpoint, **options)


def stage_cell(net: str, kind: type[nn.Module], folder: Path, mesh, shard, options: dict) -> dict:
    """Fill this rank's stage; compare it with the model that is filled in one process."""
    number = mesh.get_coordinate()[0]
    one = build_shell(kind)
    fill(one, open_checkpoint(folder), **options)
    stage, report = filled_stage(net, kind, folder, mesh, shard, options)
    assert not report.left_out, report.left_out
    wanted = one.model.state_dict(keep_vars=True)
    found = stage.state_dict(keep_vars=True)
    assert found.keys() <= wanted.keys()
    assert ("head.weight" in found) == (number == 1)
    for name, tensor in found.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert whole.dtype == wanted[name].dtype, f"{name} is {tensor.dtype}"
        assert torch.equal(whole, wanted[name]), f"{name} differs"
    if shard is None and net not in NO_FORWARD:
        compare_forward(number, stage.eval(), one.model.eval())
    return {"nbytes": report.nbytes, "names": sorted(found)}


def compare_forward(number: int, stage, one) -> None:
    x = torch.arange(12).view(2, 6) * 40
    with torch.no_grad():
        right = one(x)
        if number == 0:
            dist.send(stage.layers[0](stage.embed(x)), 1)
            return
        x = torch.empty(2, 6, 32, dtype=right.dtype)
        dist.recv(x, 0)
        assert torch.equal(stage(x), right), "the forward differs"
