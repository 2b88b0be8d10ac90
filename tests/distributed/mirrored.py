"""Mapped weights under DistributedDataParallel: `python -m tests.distributed.mirrored FOLDER` on two ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import shardload
from shardload._system.gathered import gathered
from tests.distributed.spawn import leave, say


def net():
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(3)))


def written() -> int:
    """Return the bytes of mapped weight files that this process has written to, and so holds by itself."""
    total, is_weights = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            is_weights = line.endswith(".safetensors")
        elif is_weights and line.startswith("Anonymous:"):
            total += int(line.split()[1]) * 1024
    return total


def loaded(folder: str):
    shell = shardload.build_shell(net)
    report = shardload.fill(shell, shardload.open_checkpoint(folder))
    torch.manual_seed(dist.get_rank())
    shardload.attach_lora(shell.model, r=2, alpha=4, targets=["0", "2"])
    return shell.model, report


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    model, report = loaded(folder)
    wrapped = shardload.data_parallel(model)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    wrapped(torch.full((1, 2048), 1.0 + dist.get_rank())).pow(2).mean().backward()
    optimizer.step()
    trained = [float(each.detach().double().sum()) for each in model.parameters() if each.requires_grad]
    own = written()
    usual = DistributedDataParallel(loaded(folder)[0])
    theirs = written() - own
    del usual
    with torch.no_grad():
        model[1].weight[0, 0] += dist.get_rank()
    try:
        shardload.data_parallel(model)
        refused = ""
    except shardload.UsageError as error:
        refused = str(error)
    told = gathered(trained)
    say(own=own, theirs=theirs, same=told[0] == told[1], refused=refused, notes=report.notes)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
