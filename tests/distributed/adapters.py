"""An adapter attached before sharding, trained and saved over ranks: `python -m tests.distributed.adapters FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import shardload
from tests.distributed.nets import NETS
from tests.distributed.spawn import leave, say

STEPS = 3
TARGETS = ["layers.0.up", "layers.1.down"]


def batch(step: int, rank: int) -> torch.Tensor:
    return (torch.arange(12).view(2, 6) * (7 + 5 * step + 3 * rank)) % 500


def trained(model, batches) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    losses = []
    for step in range(STEPS):
        loss = model(batches(step)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def attached(folder: Path):
    shell = shardload.build_shell(NETS["Uneven"])
    shardload.attach_lora(shell.model, r=2, alpha=4, targets=TARGETS, seed=5)
    return shell


def trained_when_cut(folder: Path, mesh) -> dict:
    """Train the saved adapter on a base under tensor parallelism, and in one process; compare the two."""
    given = {"model_class": lambda _: NETS["Uneven"](), "adapter": folder / "saved"}
    plan = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}
    models = [
        shardload.from_pretrained(folder / "base", device_mesh=mesh, tp_plan=plan, timeout=60, **given),
        shardload.from_pretrained(folder / "base", **given),
    ]
    factors = []
    for model in models:
        own = {name: parameter for name, parameter in model.named_parameters() if "lora" in name}
        for parameter in own.values():
            parameter.requires_grad_()
        before = {name: parameter.detach().clone() for name, parameter in own.items()}
        trained(model.train(), lambda step: batch(step, 0))
        assert not any(torch.equal(before[name], parameter) for name, parameter in own.items())
        factors.append(torch.cat([parameter.detach().flatten() for parameter in own.values()]))
    both = [torch.empty_like(factors[0]) for _ in range(dist.get_world_size())]
    dist.all_gather(both, factors[0])
    return {"cut_far": float((factors[0] - factors[1]).abs().max()), "cut_same": torch.equal(*both)}


def main(where: str) -> None:
    dist.init_process_group("gloo")
    folder = Path(where)
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    shell = attached(folder)
    for layer in shell.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(shell.model, mesh=mesh)
    checkpoint = shardload.open_checkpoint(folder / "base")
    report = shardload.fill(shell, checkpoint)
    shell.model.train()
    drawn = {n: p.full_tensor() for n, p in shell.model.named_parameters() if p.requires_grad}
    trained(shell.model, lambda step: batch(step, rank))
    one = attached(folder)
    shardload.fill(one, checkpoint)
    one.model.train()
    same = all(torch.equal(drawn[n], p) for n, p in one.model.named_parameters() if p.requires_grad)
    trained(one.model, lambda step: torch.cat([batch(step, each) for each in range(world)]))
    shell.model(batch(0, 0))  # a forward leaves the root's parameters whole
    wanted = {name: parameter for name, parameter in one.model.named_parameters() if parameter.requires_grad}
    far = 0.0
    for module in shell.model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    for name, parameter in shell.model.named_parameters():
        if parameter.requires_grad:
            assert isinstance(parameter, DTensor), name
            whole = parameter.full_tensor()
            far = max(far, float((whole - wanted[name]).abs().max()))
            moved = float((whole - drawn[name]).abs().max())
            assert moved > 1e-4, f"{name} did not train"
    files = shardload.save_adapter(shell.model, folder / "saved")
    shardload.save_adapter(one.model, folder / f"one{rank}")
    saved = shardload.save(shell.model, folder / "model", timeout=60)
    cut = trained_when_cut(folder, mesh)
    say(
        **cut, far=far, same=same, nbytes=report.nbytes, files=[file.name for file in files], saved=len(saved)
    )
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
