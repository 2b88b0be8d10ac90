"""What a constructor computes from its parameters and from tables has no values; what it writes that to has none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from shardload import UnsupportedError, build_shell, fill, open_checkpoint
from shardload.model.rebuild import class_values
from tests.tiny import assert_same_state, meta_names, random_state, torch_filled, write_checkpoint


class Mixed(nn.Module):
    """Has a parameter and a table, and a constructor that goes on with both."""

    def __init__(self, work: Callable[[Mixed], object]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        with torch.no_grad():
            self.made = work(self)


def lstm_of(table: torch.Tensor) -> torch.Tensor:
    return nn.LSTM(3, 3)(table.view(1, 1, 3))[0]


COMPUTED: dict[str, Callable[[Mixed], object]] = {
    "sum": lambda net: net.weight + net.table,
    "sum, the table first": lambda net: net.table + net.weight,
    "product of a sum": lambda net: torch.ones_like(net.weight * math.log(0.3) + net.table),
    "cat": lambda net: torch.cat([net.table, net.weight]),
    "where": lambda net: torch.where(net.table > 1, net.weight, net.table),
    "linear": lambda net: nn.Linear(3, 2)(net.table),
    "convolution": lambda net: nn.Conv1d(3, 2, 1)(net.table[None, :, None]),
    "lstm": lambda net: lstm_of(net.table),
    "out": lambda net: torch.add(net.table, net.weight, out=torch.zeros(3)),
    "index": lambda net: net.weight[torch.tensor([2, 0])],
    "in place on a new tensor": lambda net: torch.zeros(3).add_(net.weight),
    "mask in place": lambda net: [held := net.table > 0, held.__ior__(net.weight > 0), held][2],
    "read after the write": lambda net: [held := torch.zeros(3), held[:2].copy_(net.weight[:2]), held * 2][2],
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_from_a_parameter_has_no_values_and_the_right_shape(name):
    made, real = build_shell(lambda: Mixed(COMPUTED[name])).model, Mixed(COMPUTED[name])
    assert made.made.is_meta
    assert (made.made.shape, made.made.dtype) == (real.made.shape, real.made.dtype)
    assert torch.equal(made.table, real.table)


TAKEN: dict[str, Callable[[Mixed], object]] = {
    "to": lambda net: (net.table / 3).to(net.weight),
    "type_as": lambda net: torch.arange(3).type_as(net.weight),
    "expand_as": lambda net: net.table.expand_as(net.weight),
    "view_as": lambda net: net.table.view_as(net.weight),
    "broadcast": lambda net: torch.broadcast_tensors(net.table[:1], net.weight)[0],
    "device": lambda net: torch.ones(3, device=net.weight.device) * net.table,
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_table_that_takes_only_a_shape_a_dtype_or_a_device_from_a_parameter_is_real(name):
    made, real = build_shell(lambda: Mixed(TAKEN[name])).model.made, Mixed(TAKEN[name]).made
    assert made.dtype == real.dtype
    assert torch.equal(made, real)


WRITTEN: dict[str, Callable[[Mixed], object]] = {
    "copy_": lambda net: net.table.copy_(net.weight),
    "copy_ to a view": lambda net: net.table[:2].copy_(net.weight[:2]),
    "copy_ to its data": lambda net: net.table.data.copy_(net.weight.data),
    "data": lambda net: setattr(net.table, "data", net.weight.data),
    "an item": lambda net: net.table.__setitem__(0, net.weight[0]),
    "a slice": lambda net: net.table.__setitem__(slice(None), net.weight),
    "add_": lambda net: net.table.add_(net.weight),
    "+=": lambda net: net.table.__iadd__(net.weight),
    "out": lambda net: torch.mul(net.weight, 2, out=net.table),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_table_that_is_written_from_a_parameter_is_refused_by_name(name):
    with pytest.raises(UnsupportedError, match="the constructor computes table from its parameters"):
        build_shell(lambda: Mixed(WRITTEN[name]))


def test_a_plain_attribute_that_is_written_from_a_parameter_has_no_values():
    def write(net: Mixed) -> None:
        net.held = torch.zeros(3)
        net.held[:2].copy_(net.weight[:2])

    assert build_shell(lambda: Mixed(write)).model.held.is_meta


READ: dict[str, Callable[[Mixed], object]] = {
    "item": lambda net: net.weight[0].item(),
    "tolist": lambda net: net.weight.tolist(),
    "equal": lambda net: torch.equal(net.weight, net.table),
    "allclose": lambda net: torch.allclose(net.table, net.weight),
    "comparison": lambda net: bool((net.weight == net.table).all()),
}


@pytest.mark.parametrize("name", READ)
def test_a_constructor_that_reads_values_is_refused(name):
    with pytest.raises(UnsupportedError, match="looks at the values of its parameters, and a shell has none"):
        build_shell(lambda: Mixed(READ[name]))


class Frozen(nn.Module):
    """A normalisation whose values are stored buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(3))
        self.register_buffer("bias", torch.zeros(3))
        self.register_buffer("eps", torch.tensor(1e-5), persistent=False)


class Copies(nn.Module):
    """Replaces its normalisation by a frozen copy, as detection models do."""

    def __init__(self, copy: Callable[[Frozen, nn.BatchNorm1d], object]) -> None:
        super().__init__()
        norm, self.frozen = nn.BatchNorm1d(3), Frozen()
        with torch.no_grad():
            copy(self.frozen, norm)


def by_copy(frozen: Frozen, norm: nn.BatchNorm1d) -> None:
    frozen.weight.copy_(norm.weight)
    frozen.bias.copy_(norm.bias)


def by_data(frozen: Frozen, norm: nn.BatchNorm1d) -> None:
    frozen.weight.data.copy_(norm.weight.data)
    frozen.bias.data = norm.bias.data


def by_items(frozen: Frozen, norm: nn.BatchNorm1d) -> None:
    frozen.weight[:] = norm.weight
    frozen.bias[:2] = norm.bias[:2]


def by_state(frozen: Frozen, norm: nn.BatchNorm1d) -> None:
    frozen.load_state_dict({"weight": norm.weight, "bias": norm.bias})


def by_sum(frozen: Frozen, norm: nn.BatchNorm1d) -> None:
    frozen.weight += norm.weight
    frozen.bias.sub_(norm.bias * frozen.eps)


@pytest.mark.parametrize("copy", [by_copy, by_data, by_items, by_state, by_sum], ids=lambda one: one.__name__)
def test_stored_buffers_that_are_written_from_parameters_are_loaded(copy, tmp_path):
    def make() -> nn.Module:
        return Copies(copy)

    state = random_state(make())
    shell = build_shell(make)
    assert shell.model.frozen.weight.is_meta
    assert torch.equal(shell.model.frozen.eps, torch.tensor(1e-5))
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert meta_names(shell.model) == []
    assert_same_state(shell.model, torch_filled(make, state))


def test_data_that_is_set_gives_a_parameter_its_shape_and_dtype():
    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.weight.data = torch.full((3, 2), 0.5, dtype=torch.half)
        model.bias.data = model.weight.data[:, 0].float()
        return model

    shell, real = build_shell(make), make()
    for name, parameter in shell.model.named_parameters():
        assert parameter.is_meta
        assert (parameter.shape, parameter.dtype) == (
            real.get_parameter(name).shape,
            real.get_parameter(name).dtype,
        )
    values = class_values(shell, ["weight"])
    assert torch.equal(values["weight"], real.weight)


class Decay(nn.Module):
    """Its initial values come from a table, and others from those."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.empty(3)), nn.Parameter(torch.empty(3))
        table = torch.arange(3, dtype=self.first.dtype, device=self.first.device) / 3
        with torch.no_grad():
            self.first.copy_(torch.ones_like(self.first * math.log(0.3) + table) * table)
            self.second.copy_(self.first * 2)


def test_initial_values_that_come_from_a_table_are_those_of_the_class():
    shell, real = build_shell(Decay), Decay()
    assert all(parameter.is_meta for parameter in shell.model.parameters())
    assert torch.equal(class_values(shell, ["first"])["first"], real.first)
    assert torch.equal(class_values(shell, ["first", "second"])["second"], real.second)
    assert class_values(shell, ["second"]) == {}, "they come from those of a parameter that has none"


def test_parameters_of_a_module_that_existed_before_are_not_written_to():
    before = nn.Linear(3, 3)
    values = before.weight.detach().clone()

    def make() -> nn.Module:
        with torch.no_grad():
            before.weight.add_(nn.Linear(3, 3).weight)
        return before

    with pytest.raises(UnsupportedError, match="has none"):
        build_shell(make)
    assert torch.equal(before.weight, values)
