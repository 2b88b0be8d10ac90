"""Construction: which parameters of a constructor are on meta, in which order, and which are somebody else's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from shardload import MismatchError, UnsupportedError, build_shell, fill, from_pretrained, open_checkpoint
from shardload.model.construction import Construction
from shardload.model.meta_init import constructed
from shardload.model.rebuild import rebuild_with
from tests.tiny import write_checkpoint


def run(make, real: frozenset[int] | None = None) -> tuple[nn.Module, Construction]:
    construction = Construction(real)
    model = constructed(make, construction)
    construction.settle(model.modules())
    return model, construction


def names_in_order(make) -> list[str]:
    model, construction = run(make)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in construction.created]


class Holder(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.weight = make()


WAYS = {
    "nn.Parameter(torch.empty)": lambda: nn.Parameter(torch.empty(3, 4)),
    "of values": lambda: nn.Parameter(torch.arange(12.0).view(3, 4)),
    "a view of values": lambda: nn.Parameter(torch.randn(6, 4)[::2]),
    "the old constructor": lambda: nn.Parameter(torch.Tensor(3, 4)),
    "the old constructor, filled": lambda: nn.init.xavier_uniform_(nn.Parameter(torch.Tensor(3, 4))),
    "frombuffer": lambda: nn.Parameter(torch.frombuffer(bytearray(48), dtype=torch.float32).view(3, 4)),
    "as_tensor": lambda: nn.Parameter(torch.as_tensor([[0.5] * 4] * 3)),
    "a parameter of a parameter": lambda: nn.Parameter(nn.Parameter(torch.ones(3, 4))),
    "a deep copy": lambda: copy.deepcopy(nn.Parameter(torch.ones(3, 4))),
    "without gradients": lambda: nn.Parameter(torch.ones(3, 4), requires_grad=False),
    "of another dtype": lambda: nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False),
    "a subclass": lambda: Special(torch.ones(3, 4)),
    "used before it is registered": lambda: used(nn.Parameter(torch.ones(3, 4))),
}


class Special(nn.Parameter):
    pass


def used(parameter: nn.Parameter) -> nn.Parameter:
    parameter.sum()
    return parameter


@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_is_on_meta_however_it_is_made(way):
    made, real = build_shell(lambda: Holder(WAYS[way])).model.weight, Holder(WAYS[way]).weight
    assert made.is_meta
    assert (made.shape, made.dtype, made.requires_grad) == (real.shape, real.dtype, real.requires_grad)
    assert type(made) is type(real)


@pytest.mark.parametrize("way", WAYS)
def test_it_gets_its_values_when_it_is_wanted_real(way):
    if way in (
        "nn.Parameter(torch.empty)",
        "the old constructor",
        "the old constructor, filled",
        "a view of values",
    ):
        pytest.skip("its values are random")
    assert torch.equal(rebuild_with(lambda: Holder(WAYS[way]), {0, 1}).weight, Holder(WAYS[way]).weight)


def test_the_order_is_that_of_registration_and_the_same_in_every_run():
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), Holder(WAYS["the old constructor"]), nn.BatchNorm1d(2))

    names = names_in_order(make)
    assert sorted(names) == ["0.bias", "0.weight", "1.weight", "2.bias", "2.weight"]
    assert all(names_in_order(make) == names for _ in range(3))


def test_a_copied_module_is_on_meta_and_its_copies_are_known():
    def make() -> nn.Module:
        first = nn.Linear(2, 2)
        return nn.Sequential(first, copy.deepcopy(first))

    model, construction = run(make)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(construction.created) == 4


def test_a_tied_parameter_is_one():
    def make() -> nn.Module:
        first, second = Holder(WAYS["the old constructor"]), nn.Linear(2, 2)
        second.weight = first.weight
        return nn.Sequential(first, second)

    model, construction = run(make)
    assert model[0].weight is model[1].weight
    assert model[0].weight.is_meta
    assert len(construction.created) == 3  # one is the weight that the Linear had before


def test_a_parameter_that_existed_before_keeps_its_values_where_it_was():
    own = nn.Linear(2, 2)
    before = own.weight.detach().clone()

    def make() -> nn.Module:
        new = nn.Linear(2, 2)
        new.weight = own.weight  # tied into a new module, which gets a parameter on meta
        nn.init.zeros_(new.bias)
        return nn.Sequential(own, new)

    model, _ = run(make)
    assert torch.equal(own.weight, before)
    assert model[0] is own
    assert not own.weight.is_meta
    assert model[1].weight.is_meta


def test_what_an_initialiser_of_somebody_elses_parameter_does_is_done():
    own = nn.Linear(2, 2)
    run(lambda: nn.Sequential(own, Holder(lambda: nn.init.ones_(own.weight))))
    assert torch.equal(own.weight, torch.ones(2, 2))


class Own(torch.Tensor):
    """A class of tensors with no functions of its own."""


class OfOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, 2).as_subclass(Own))
        self.linear = nn.Linear(2, 2)


def test_a_parameter_of_a_class_of_its_own_is_a_leaf_on_meta(tmp_path):
    shell = build_shell(OfOwn)
    weight = shell.model.w
    assert type(weight) is type(OfOwn().w) is Own
    assert weight.is_meta
    assert weight.is_leaf
    assert weight.requires_grad
    write_checkpoint(
        tmp_path, {name: torch.ones(2, 2)[: slot.shape[0]] for name, slot in shell.slots.items()}
    )
    with pytest.raises(UnsupportedError, match="tensors of other classes") as refused:
        fill(shell, open_checkpoint(tmp_path))
    assert "w is a Own" in refused.value.where


def test_references_to_a_parameter_stay():
    def make() -> nn.Module:
        model = Holder(WAYS["of values"])
        model.listed = [model.weight]
        return model

    model, _ = run(make)
    assert model.listed[0] is model.weight
    assert model.listed[0].is_meta


def test_nan_marks_what_nobody_wrote():
    def make() -> nn.Module:
        model = Holder(lambda: nn.Parameter(torch.empty(2, 2)))
        model.other = nn.Parameter(torch.empty(2))
        with torch.no_grad():
            model.other.fill_(3.0)
        model.register_buffer("table", torch.empty(2))
        return model

    model = rebuild_with(make, {0, 1})
    assert model.weight.isnan().all()
    assert torch.equal(model.other, torch.full((2,), 3.0))
    assert model.table.isnan().all()


def test_only_the_wanted_parameters_have_memory():
    model = rebuild_with(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {2})
    assert [parameter.is_meta for parameter in model.parameters()] == [True, True, False, True]


def test_more_parameters_than_a_checkpoint_can_fill_are_refused_while_they_are_made():
    made = []

    def make() -> nn.Module:
        for _ in range(100):
            made.append(nn.Linear(1, 1, bias=False))  # noqa: PERF401 - what was made is looked at after the error
        return nn.ModuleList(made)

    with pytest.raises(MismatchError, match="over 10 parameters"):
        build_shell(make, at_most=10)
    assert len(made) == 10


def test_lazy_parameters_are_left_to_their_first_forward():
    model, _ = run(lambda: nn.LazyLinear(3))
    assert isinstance(model.weight, nn.UninitializedParameter)


CHANGES = {
    "cast": lambda module: module.to(torch.bfloat16),
    "halved": lambda module: module.half(),
    "its data set": lambda module: setattr(module.weight, "data", torch.full((2, 2), 3.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_constructor_does_to_somebody_elses_module_is_done(change):
    own, oracle = nn.Linear(2, 2), nn.Linear(2, 2)
    oracle.load_state_dict(own.state_dict())
    CHANGES[change](oracle)

    def make() -> nn.Module:
        CHANGES[change](own)
        own.weight.requires_grad_(False)
        return nn.Sequential(own, nn.Linear(2, 2))

    run(make)
    assert not own.weight.is_meta
    assert torch.equal(own.weight, oracle.weight)
    assert own.weight.dtype == oracle.weight.dtype


def test_a_parameter_that_is_written_from_one_without_values_has_none(tmp_path):
    def make() -> nn.Module:
        model = nn.Module()
        model.stored, model.derived = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        model.derived.data.copy_(model.stored.data * 2)
        return model

    with pytest.raises(MismatchError, match="derived: not in the checkpoint"):
        fill(build_shell(make), stored(tmp_path, {"stored": torch.ones(3)}), allow_missing=["derived"])


def test_a_constructor_may_load_another_model_and_cast_it(tmp_path):
    folder = write_checkpoint(tmp_path / "inner", nn.Linear(2, 2).state_dict())

    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.tower = from_pretrained(
            folder, model_class=lambda _config: nn.Linear(2, 2), config={}, dtype="float16"
        )
        return model

    model = build_shell(make).model
    assert model.weight.is_meta
    assert not model.tower.weight.is_meta
    assert model.tower.weight.dtype == torch.float16


def stored(folder, state):
    return open_checkpoint(write_checkpoint(folder, state))


def test_a_dry_run_of_a_lazy_module_in_the_constructor_works():
    def make() -> nn.Module:
        lazy = nn.LazyBatchNorm1d()
        lazy(torch.zeros(2, 4))
        return lazy

    assert run(make)[0].weight.shape == (4,)
