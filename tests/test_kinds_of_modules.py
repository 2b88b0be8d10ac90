"""Every kind of module that torch has, and some odd ones, filled as torch's load_state_dict fills them.

Each is filled as a shell and as a module that was built for real, from shards, and compared with the oracle in
state, dtype and (where there is an input) output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import build_shell, fill, open_checkpoint, save
from tests.kinds import KINDS, Shared, quietly
from tests.tiny import assert_same_state, meta_names, random_state, write_checkpoint


def built(make, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


@pytest.mark.parametrize("built_for_real", [False, True], ids=["shell", "real"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_filled_as_torch_fills_it(tmp_path, kind, built_for_real):
    make, inputs = KINDS[kind]
    state = {key: value.clone() for key, value in built(make, 1).state_dict().items()}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, kind="bin", shards=2))
    filled = built(make, 2) if built_for_real else build_shell(make)
    fill(filled, checkpoint)
    model = filled if built_for_real else filled.model
    oracle = built(make, 3)
    oracle.load_state_dict(state, assign=True)
    assert_same_state(model, oracle)
    assert meta_names(model) == []
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in oracle.parameters()]
    if inputs is not None:
        arguments = inputs()
        ours, theirs = model.eval()(*arguments), oracle.eval()(*arguments)
        assert torch.equal(*((ours[0], theirs[0]) if isinstance(ours, tuple) else (ours, theirs)))


@pytest.mark.parametrize("built_for_real", [False, True], ids=["shell", "real"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_lazy_modules_take_the_shapes_of_the_checkpoint(tmp_path, kind, built_for_real):
    def make() -> nn.Module:
        return quietly(lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2)))

    x = torch.randn(3, 4)
    oracle = make()
    oracle(x)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(oracle), kind=kind, shards=2))
    oracle.load_state_dict(random_state(oracle))
    filled = make() if built_for_real else build_shell(make)
    fill(filled, checkpoint)
    model = filled if built_for_real else filled.model
    assert torch.equal(model.eval()(x), oracle.eval()(x))


def test_a_module_under_two_paths_is_saved_once_and_comes_back(tmp_path):
    model = Shared()
    model.load_state_dict(random_state(model))
    save(model, tmp_path)
    shell = build_shell(Shared)
    fill(shell, open_checkpoint(tmp_path))
    assert_same_state(shell.model, model)
    assert shell.model.a is shell.model.b


def test_two_parameters_in_one_memory_are_no_tie(tmp_path):
    """They are two parameters to whoever loads them: both have to be in the file."""

    def make() -> nn.Module:
        model = nn.Module()
        model.a = nn.Parameter(torch.ones(3))
        model.b = nn.Parameter(model.a.data)
        return model

    save(make(), tmp_path)
    shell = build_shell(make)
    fill(shell, open_checkpoint(tmp_path))
    assert torch.equal(shell.model.a, shell.model.b)
