"""The end of a load sets eval mode as torch's own `eval()` does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import MismatchError, check, fill, open_checkpoint
from shardload.loading.finish import switch_to_eval
from tests.tiny import Net, build_shell, random_state, write_checkpoint


class AlwaysTraining(nn.Module):
    """A module that stays in training mode, with its children."""

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
    """Records every mode that it is set to."""

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


@pytest.mark.parametrize("name", MAKERS)
def test_eval_mode_is_what_torch_sets(name):
    expected, model = MAKERS[name](), MAKERS[name]()
    expected.eval()
    switch_to_eval(model)
    assert modes(model) == modes(expected)


def test_an_uninitialised_buffer_is_no_value_either(tmp_path):
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("good", torch.full((2,), 4.0))
            self.register_buffer("bad", torch.empty(64))

    state = {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
    with pytest.raises(
        MismatchError, match="bad: not in the checkpoint, and the class leaves it uninitialised"
    ):
        fill(build_shell(Table), checkpoint, allow_missing=["good", "bad"])
    full = open_checkpoint(write_checkpoint(tmp_path / "full", {**state, "bad": torch.ones(64)}))
    shell = build_shell(Table)
    fill(shell, full, allow_missing=["good"])
    assert torch.equal(shell.model.good, torch.full((2,), 4.0))


def test_what_a_post_hook_forgives_gets_the_value_of_the_class(tmp_path):
    class Forgiving(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((8,), 3.0))
            self.register_load_state_dict_post_hook(lambda _module, keys: keys.missing_keys.remove("gain"))

    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
    shell = build_shell(Forgiving)
    assert check(shell, checkpoint).ok
    report = fill(shell, checkpoint)
    assert torch.equal(shell.model.gain, torch.full((8,), 3.0))
    assert [f.key for f in report.allowed["a load_state_dict hook of the class"]] == ["gain"]
    model = Forgiving()
    with torch.no_grad():
        model.gain.fill_(5.0)
    fill(model, checkpoint)
    assert torch.equal(model.gain, torch.full((8,), 5.0))
