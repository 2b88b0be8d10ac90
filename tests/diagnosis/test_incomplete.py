"""A router that is a single number, and a stored number for a stack, are no experts that are missing."""

import torch
from torch import nn

import shardload


class Net(nn.Module):
    def __init__(self, router):
        super().__init__()
        self.router = nn.Parameter(router)
        self.stack = nn.Parameter(torch.zeros(2, 3))


def test_tensors_without_dimensions_are_judged(tmp_path):
    for number, (stored, wanted) in enumerate(
        [
            (torch.tensor(1.0), torch.tensor(2.0)),
            (torch.tensor(1.0), torch.zeros(2)),
            (torch.zeros(2), torch.tensor(1.0)),
        ]
    ):
        folder = tmp_path / str(number)
        saved = Net(stored)
        saved.stack = nn.Parameter(torch.zeros(()))
        shardload.save(saved, folder)
        report = shardload.check(Net(wanted), shardload.open_checkpoint(folder))
        faulty = {fault.key for fault in report.faults}
        assert faulty == ({"stack"} if stored.shape == wanted.shape else {"router", "stack"})
