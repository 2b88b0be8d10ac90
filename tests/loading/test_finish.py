"""The end of a load: eval mode as torch's own `eval()` sets it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.loading.finish import switch_to_eval


class AlwaysTraining(nn.Module):
    """Stays in training mode, and so do its children."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Dropout()

    def train(self, mode: bool = True) -> AlwaysTraining:
        del mode
        return self


class OwnEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Dropout()
        self.asked = 0

    def eval(self) -> OwnEval:
        self.asked += 1
        return super().eval()


class Listening(nn.Module):
    """Keeps every mode that it was set to."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Dropout()
        self.__dict__["modes"] = []

    def __setattr__(self, name: str, value: object) -> None:
        if name == "training" and "modes" in self.__dict__:
            self.__dict__["modes"].append(value)
        super().__setattr__(name, value)


MAKERS = {
    "plain": lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.ModuleList())),
    "own train": lambda: nn.Sequential(AlwaysTraining(), nn.Dropout()),
    "own train at the top": AlwaysTraining,
    "own eval": OwnEval,
    "own eval below": lambda: nn.Sequential(OwnEval()),
    "own __setattr__": lambda: nn.Sequential(Listening()),
    "scripted": lambda: nn.Sequential(torch.jit.script(nn.Sequential(nn.Dropout()))),
    "a child that is none": lambda: on(nn.Sequential(nn.Dropout())),
    "shared": lambda: nn.ModuleList([nn.Dropout()] * 2),
}


def on(module: nn.Module) -> nn.Module:
    module.register_module("nothing", None)
    return module


def modes(model: nn.Module) -> list[object]:
    return [
        (type(module).__name__, module.training, module.__dict__.get("modes"), module.__dict__.get("asked"))
        for module in model.modules()
    ]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_eval_mode_is_what_torch_sets(name):
    expected, model = MAKERS[name](), MAKERS[name]()
    expected.eval()
    switch_to_eval(model)
    assert modes(model) == modes(expected)
