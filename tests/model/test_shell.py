"""build_shell: whatever the constructor does, parameters take no memory and computed tensors are real."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from shardload import MismatchError, UnsupportedError, UsageError, build_shell, check, fill, open_checkpoint
from shardload.model.shell import survey
from tests.model.hostile import Hostile
from tests.tiny import assert_same_state, random_state, write_checkpoint


def test_slots_tell_what_a_checkpoint_has_to_fill():
    slots = build_shell(Hostile).slots
    kinds = {name: slot.kind for name, slot in slots.items()}
    assert kinds["inv_freq"] == "buffer"
    assert kinds["mask"] == "computed"
    assert kinds["cos_cached"] == "attribute"
    stored = [name for name, slot in slots.items() if slot.is_stored]
    assert sorted(stored) == sorted(Hostile().state_dict())


def test_ties_survive():
    shell = build_shell(Hostile)
    assert shell.ties == (("tied", "skipped.weight"),)
    assert shell.model.tied is shell.model.skipped.weight


def test_a_parameter_made_in_its_own_way_is_swept_to_meta():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            raw = torch.Tensor._make_subclass(nn.Parameter, torch.ones(5), True)
            self.a = raw
            self.b = raw

    model = build_shell(Own).model
    assert model.a.is_meta
    assert model.a is model.b


def test_a_module_under_two_paths_has_its_slots_under_both():
    shared = nn.Linear(2, 2)
    slots, ties = survey(nn.ModuleDict({"a": shared, "b": shared}))
    assert set(slots) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert set(ties) == {("a.weight", "b.weight"), ("a.bias", "b.bias")}


def test_a_buffer_that_is_computed_from_a_weight_is_refused_at_once():
    class Derived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))
            self.register_buffer("square", self.weight.detach() ** 2, persistent=False)

    with pytest.raises(UnsupportedError, match="computes square from its parameters"):
        build_shell(Derived)


def test_a_module_of_the_callers_keeps_its_weights():
    trained = nn.Linear(2, 2)
    weight = trained.weight.detach().clone()

    class Head(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body
            self.head = nn.Linear(2, 1)

    for make in (lambda: trained, lambda: Head(trained)):
        shell = build_shell(make)
        assert torch.equal(trained.weight, weight)
    assert shell.model.head.weight.is_meta


def test_a_model_that_was_changed_after_the_shell_was_built_is_judged_as_it_is(tmp_path):
    """The head was replaced: by the old shapes, a weight of [12, 8] would be assigned to a layer of 20 outputs."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 12))

    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(make())))
    shell = build_shell(make)
    shell.model[1] = nn.Linear(8, 20)
    with pytest.raises(MismatchError, match="2 misshapen"):
        fill(shell, checkpoint)
    shell = build_shell(make)
    shell.model.append(nn.Linear(12, 12))
    with pytest.raises(MismatchError, match="2 missing"):
        fill(shell, checkpoint)
    shell = build_shell(make)
    shell.model.first = shell.model[0]
    del shell.model._modules["0"]
    assert [f.key for f in check(shell, checkpoint).faults if f.kind == "missing"] == [
        "first.weight",
        "first.bias",
    ]


def test_a_constructor_that_looks_at_its_parameters_values_is_told_what_to_do(tmp_path):
    def make() -> nn.Module:
        return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2))

    with pytest.raises(UnsupportedError, match="looks at the values") as caught:
        build_shell(make)
    assert "build the module for real" in caught.value.cure
    model = make()
    state = {key: value.clone() for key, value in make().state_dict().items()}
    fill(model, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert_same_state(model, make_and_load(make, state))


def make_and_load(make, state):
    model = make()
    model.load_state_dict(state, assign=True)
    return model


def test_a_constructors_own_errors_pass_through():
    with pytest.raises(RuntimeError, match="mine"):
        build_shell(lambda: (_ for _ in ()).throw(RuntimeError("mine")))


@pytest.mark.parametrize("made", [None, 3, nn.Linear])
def test_what_is_no_module_is_refused(made):
    with pytest.raises(UsageError, match="not an nn.Module"):
        build_shell(lambda: made)
