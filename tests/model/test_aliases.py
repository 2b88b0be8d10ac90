"""Every other reference to a parameter points at the loaded tensor; after a failed load, at the old one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import CorruptError, build_shell, fill, open_checkpoint
from shardload.placement.target import Target
from tests.kinds import after, pruned
from tests.tiny import random_state, torch_filled, write_checkpoint


def test_an_rnn_keeps_using_the_weights_that_were_loaded(tmp_path):
    """An RNN keeps its weights in a list too; an assignment to its table of parameters leaves the list on meta."""
    state = random_state(nn.LSTM(4, 4))
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
    shell, existing = build_shell(lambda: nn.LSTM(4, 4)), nn.LSTM(4, 4)
    x = torch.randn(2, 3, 4)
    for model in (shell, existing):
        fill(model, checkpoint)
    # In some versions torch's forward repairs the list itself; other code that reads the list does not.
    assert existing._flat_weights[0] is existing.weight_ih_l0
    assert shell.model._flat_weights[0] is shell.model.weight_ih_l0
    expected = torch_filled(lambda: nn.LSTM(4, 4), state)(x)[0]
    assert torch.equal(shell.model(x)[0], expected)
    assert torch.equal(existing(x)[0], expected)


def test_parameters_that_a_module_also_keeps_in_a_list_are_the_loaded_ones(tmp_path):
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.all = [self.linear.weight, (self.linear.bias, 1)]
            self.named = {"bias": self.linear.bias}

    shell = build_shell(Listing)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, random_state(Listing()))))
    model = shell.model
    assert model.all[0] is model.linear.weight
    assert model.all[1][0] is model.linear.bias
    assert model.named["bias"] is model.linear.bias


class Pointing(nn.Module):
    """Keeps its weight in a list, in a list that holds itself, and as a buffer that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.all = [self.linear.weight, (self.linear.bias, 1)]
        self.nested = {"deep": [{"er": self.linear.weight}]}
        self.nested["deep"].append(self.nested)
        self.register_buffer("mirror", self.linear.weight, persistent=False)
        self.register_buffer("stored", torch.zeros(2))
        self.also_stored = self.stored

    def pointers(self) -> bool:
        weight = self.linear.weight
        return (
            self.all[0] is weight
            and self.all[1][0] is self.linear.bias
            and self.nested["deep"][0]["er"] is weight
            and self.mirror is weight
            and self.also_stored is self.stored
        )


@pytest.mark.parametrize("built_for_real", [False, True], ids=["shell", "real"])
def test_what_points_at_a_parameter_points_at_the_loaded_one(tmp_path, built_for_real):
    state = random_state(Pointing())
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
    filled = Pointing() if built_for_real else build_shell(Pointing)
    model = filled if built_for_real else filled.model
    for _ in range(2):  # a second load replaces what the first one put there
        fill(filled, checkpoint)
        assert torch.equal(model.linear.weight, state["linear.weight"])
        assert model.pointers()


def test_a_load_that_fails_leaves_an_rnn_its_old_weights(tmp_path):
    """An RNN computes with a list of its weights, which has to be restored as well."""
    model = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4))
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(model)))
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-40])
    x = torch.randn(2, 3, 4)
    before = model[0](x)[0]
    with pytest.raises(CorruptError):
        fill(model, checkpoint)
    assert torch.equal(model[0](x)[0], before)


class FailsAtTheEnd(Target):
    """A target that fails after everything is loaded."""

    def finish(self, model) -> None:
        raise RuntimeError("at the very end")


@pytest.mark.parametrize("make", [Pointing, lambda: after(nn.utils.spectral_norm), pruned])
def test_a_load_that_fails_at_the_very_end_leaves_every_pointer_as_it_was(tmp_path, make):
    model = make()
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(model)))
    before = [(module, {**module.__dict__}) for module in model.modules()]
    lists = model.all[:] if isinstance(model, Pointing) else []
    with pytest.raises(RuntimeError, match="at the very end"):
        fill(model, checkpoint, target=FailsAtTheEnd())
    for module, attributes in before:
        assert module.__dict__.keys() == attributes.keys()
        assert all(module.__dict__[name] is value for name, value in attributes.items())
    if isinstance(model, Pointing):
        assert all(new is old for new, old in zip(model.all, lists, strict=True))
        assert model.pointers()
