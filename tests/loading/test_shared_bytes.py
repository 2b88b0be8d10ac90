"""Parameters never share memory, though their tensors do in the file; torch's own loader is the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import build_shell, fill, open_checkpoint


class Net(nn.Module):
    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.part = nn.Linear(4, 2, bias=False)
        self.whole = nn.Linear(4, 6, bias=False)
        self.rows = nn.Parameter(torch.zeros(3, 4))
        self.turned = nn.Linear(6, 4, bias=False)
        if tied:
            self.again = nn.Linear(4, 6, bias=False)
            self.again.weight = self.whole.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            self.part(x).sum()
            + self.whole(x).sum() * 2
            + self.rows.sum()
            + self.turned(x.repeat(1, 2)[:, :6]).sum()
        )


def shared_state() -> dict[str, torch.Tensor]:
    fused = torch.arange(24.0).reshape(6, 4)
    return {
        "whole.weight": fused,
        "part.weight": fused[:2],
        "rows": fused[:1].expand(3, 4),
        "turned.weight": fused.T,
    }


def stepped(model: nn.Module) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 1.0, foreach=False)
    model(torch.ones(1, 4)).backward()
    optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("copy", [False, True])
def test_a_step_changes_each_parameter_alone(tmp_path, legacy, copy):
    torch.save(shared_state(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    oracle = Net()
    oracle.load_state_dict(torch.load(tmp_path / "pytorch_model.bin"))
    shell = build_shell(Net)
    report = fill(shell, open_checkpoint(tmp_path), copy=copy)
    ours, theirs = stepped(shell.model), stepped(oracle)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert copy or any("have the same bytes" in note or "same bytes" in note for note in report.notes)


def test_names_that_the_model_ties_stay_one_and_are_not_copied(tmp_path):
    state = {
        **shared_state(),
        "part.weight": torch.ones(2, 4),
        "rows": torch.ones(3, 4),
        "turned.weight": torch.ones(4, 6),
    }
    state["again.weight"] = state["whole.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    shell = build_shell(lambda: Net(tied=True))
    report = fill(shell, open_checkpoint(tmp_path))
    assert shell.model.again.weight is shell.model.whole.weight
    assert not any("same bytes" in note for note in report.notes)
    assert report.stated.anonymous == 0
