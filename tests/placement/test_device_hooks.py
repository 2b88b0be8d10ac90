"""A model over several devices against the same model on one: forward, state dict, ties, order, errors, copies."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict, defaultdict
from types import MappingProxyType

import pytest
import torch
from torch import nn

from shardload import (
    remove_device_hooks,
    save,
)
from tests.placement.machine_double import IDS, OFFLOADED, Plain, loaded
from tests.tiny import Block, assert_same_state, meta_names, random_state, torch_filled, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("net"), random_state(Plain()), shards=2)


MAPS = {
    "two devices": {"embed": 0, "layers.0": 0, "layers": 1, "stats": 1, "head": 0},
    "offloaded": {"": 0, "layers.1": "cpu", "layers.2": "disk"},
    "offloaded but for one": {"": "cpu", "layers.0": 0},
    "all kinds": {"embed": "disk", "layers.0": 1, "layers.1": "cpu", "layers.2": 0, "stats": "cpu", "head": "disk"},
    "inside a block": {"": 0, "layers.1.up": "cpu", "layers.1.down": 1, "layers.2.norm.weight": "disk"},
    "to and fro": {"embed": 1, "layers.0": 0, "layers.1": 1, "layers.2": 0, "stats": 1, "head": 0},
}  # fmt: skip


@pytest.mark.parametrize("wanted", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("no_grad", [True, False])
def test_the_forward_is_that_of_one_device_and_the_state_dict_is_whole(folder, wanted, no_grad):
    oracle = torch_filled(Plain, random_state(Plain()))
    model, machine, report = loaded(folder, wanted)
    parameters = dict(model.named_parameters())
    with machine.strict(), torch.set_grad_enabled(not no_grad):
        for _ in range(2):
            out = model(IDS)
            assert machine.where(out) == "cpu"
    torch.testing.assert_close(out, oracle(IDS).detach())  # kernels differ by how memory is aligned
    assert_same_state(model, oracle)
    assert not meta_names(model)
    assert all(parameters[name] is each for name, each in model.named_parameters())
    assert machine.waiting == 0
    for name, parameter in parameters.items():
        place = report.devices and max(
            (k for k in wanted if not k or name == k or name.startswith(f"{k}.")), key=len
        )
        assert machine.where(parameter) == machine.device(wanted[place]), name


class Tied(nn.Module):
    """Two embeddings that are added up, a table of its own between its blocks, a tied head."""

    key = "trunk.wte.weight"

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Module()
        self.trunk.wte, self.wpe = nn.Embedding(12, 8), nn.Embedding(5, 8)
        self.first, self.second = nn.ModuleList(steps(2)), nn.ModuleList(steps(2))
        self.gain = nn.Parameter(torch.ones(8))
        self.register_buffer("places", torch.arange(5), persistent=False)
        self.head = nn.Linear(8, 12)
        self.head.weight = self.trunk.wte.weight

    def forward(self, ids: torch.Tensor, *, scale: dict | None = None) -> dict[str, torch.Tensor]:
        x = self.trunk.wte(ids) + self.wpe(self.places[: ids.shape[1]])
        for step in self.first:
            x = step(x)
        x = x * self.gain
        for step in self.second:
            x = step(x)
        return {"logits": self.head(x * self.gain), "hidden": x}


def steps(count: int) -> list[Block]:
    made = [Block(8) for _ in range(count)]
    for each in made:
        each.slopes = 0.25
    return made


TIED = {
    "on one device": {"": 0, "first.1": 1, "second": 1},
    "on two devices": {"": 1, "trunk": 0, "head": 1},
    "offloaded": {"": 0, "trunk": "cpu", "head": "cpu", "second": "disk"},
    "offloaded on one side": {"": 0, "trunk": "disk", "head": 1, "gain": "cpu"},
}


@pytest.mark.parametrize("wanted", TIED.values(), ids=TIED)
def test_ties_over_devices_are_one_tensor_with_one_gradient(tmp_path, wanted):
    torch.manual_seed(2)
    oracle = Tied().eval()
    save(oracle, tmp_path)
    model, machine, _ = loaded(tmp_path, wanted, Tied)
    assert model.head.weight is model.trunk.wte.weight
    with machine.strict():
        model(IDS)["logits"].square().sum().backward()
        again = model(IDS)["logits"]
    oracle(IDS)["logits"].square().sum().backward()
    torch.testing.assert_close(again, oracle(IDS)["logits"])
    assert_same_state(model, oracle)
    assert model.head.weight is model.trunk.wte.weight
    wanted_grads = {name: each.grad for name, each in oracle.named_parameters()}
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, wanted_grads[name], msg=name)
        assert machine.where(each.grad) == machine.where(each), name


def test_a_block_is_fetched_while_the_one_before_it_runs_and_dropped_when_it_ran(folder):
    model, machine, report = loaded(folder, OFFLOADED)
    seen = []
    for layer in model.layers:
        layer.norm.register_forward_hook(lambda *_: seen.append((machine.fetches, machine.waiting)))
    with machine.strict():
        out = model(IDS)
    assert seen == [(2, 1), (3, 1), (3, 0)]
    assert out.requires_grad
    kept = [each for each in (ref() for ref in machine.fetched) if each is not None]
    assert all(type(each) is not nn.Parameter for each in kept)
    assert sum(each.numel() for each in kept) <= 3  # each block's buffer of one number, which autograd saved
    assert "are offloaded: blocks are brought to device 0 to run, fetched while" in str(report)
    del out, kept
    assert machine.held() == 0


def test_without_room_for_two_blocks_none_is_fetched_ahead(folder):
    size = sum(each.nbytes for each in (*Plain().layers[0].parameters(), *Plain().layers[0].buffers()))
    model, machine, report = loaded(folder, {"": 0, "layers": "cpu"}, max_memory={0: 2200, "cpu": 10**6})
    assert report.devices[0].room == size
    with machine.strict(), torch.no_grad():
        model(IDS)
    assert (machine.fetches, machine.most_waiting, machine.held()) == (3, 1, 0)
    assert "one at a time" in str(report)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_in_a_forward_the_parameters_are_back(folder, error):
    model, machine, _ = loaded(folder, OFFLOADED)
    before = dict(model.named_parameters())

    def fails(*_):
        raise error("stop")

    handle = model.layers[1].norm.register_forward_hook(fails)
    with machine.strict(), torch.no_grad(), pytest.raises(error):
        model(IDS)
    handle.remove()
    if error is ValueError:  # torch runs no hook after a KeyboardInterrupt: the next forward puts them back
        assert all(before[name] is each for name, each in model.named_parameters())
    with machine.strict(), torch.no_grad():
        out = model(IDS)
    assert all(before[name] is each for name, each in model.named_parameters())
    torch.testing.assert_close(out, torch_filled(Plain, random_state(Plain()))(IDS).detach())


def test_a_copy_that_fails_leaves_the_parameters_in_place(folder):
    model, machine, _ = loaded(folder, OFFLOADED)
    before = dict(model.named_parameters())
    fetch = machine.fetch

    def lost(tensors, device):
        if len(machine.fetched) > 8:
            raise RuntimeError("the device is lost")
        return fetch(tensors, device)

    machine.fetch = lost
    with pytest.raises(RuntimeError, match="the device is lost"):
        model(IDS)
    assert all(before[name] is each for name, each in model.named_parameters())
    machine.fetch = fetch
    model(IDS)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_has_hooks_of_its_own(folder, how):
    model, machine, _ = loaded(folder, {"": "cpu", "head": 0})
    other = how(model)
    hooks = next(iter(other.layers[1]._forward_pre_hooks.values())).__self__
    assert hooks.module is other.layers[1]
    assert hooks.ahead.machine is not machine
    remove_device_hooks(other)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in other.modules())
    assert not any(module._forward_hooks_always_called for module in other.modules())
    assert all(module._forward_pre_hooks for module in model.layers)


class Numbered(UserDict):
    """A mapping that takes no keywords, as a BatchEncoding."""

    def __init__(self, data, number=0):
        super().__init__(data)
        self.number = number


@pytest.mark.parametrize(
    "mapping",
    [
        OrderedDict({1: 0}), defaultdict(list, a=0), Numbered({"a": 0}, 7), MappingProxyType({"a": 0}), {2: 0},
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_a_mapping_that_is_moved_stays_what_it_is(folder, mapping):
    class Mapped(Plain):
        def forward(self, ids):
            return _like(mapping, super().forward(ids))

    model, machine, _ = loaded(folder, {"": 1, "layers.0": 0}, Mapped)
    out = model(IDS)
    assert type(out) is type(mapping)
    assert list(out) == list(mapping)
    assert all(machine.where(each) == "cpu" for each in out.values())
    assert getattr(out, "default_factory", None) is getattr(mapping, "default_factory", None)
    assert getattr(out, "number", None) == getattr(mapping, "number", None)


def _like(mapping, value):
    if isinstance(mapping, MappingProxyType):
        return MappingProxyType(dict.fromkeys(mapping, value))
    made = copy.copy(mapping)
    made.update(dict.fromkeys(mapping, value))
    return made


class Lists(nn.Module):
    """Tables in modules without a forward, with which their owner computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(8)) for _ in range(2))
        self.shifts = nn.ModuleDict({"a": nn.ParameterDict({"x": nn.Parameter(torch.zeros(8))})})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) * self.gains[0] + self.shifts["a"]["x"]
        return x * self.gains[1]


@pytest.mark.parametrize(
    ("wanted", "limits"),
    [
        ({"": 0, "layers.1": 1, "gains": 1}, None),
        ({"": 0, "gains": "cpu", "shifts": "disk"}, None),
        ({"": "cpu", "layers.0": 0}, None),
        ("auto", {0: 500, 1: 700}),
        ("auto", {0: 700, "cpu": 300}),
    ],
)
def test_parameters_of_lists_are_with_the_module_that_computes_with_them(tmp_path, wanted, limits):
    oracle = torch_filled(Lists, random_state(Lists()))
    folder = write_checkpoint(tmp_path / "lists", random_state(Lists()))
    model, machine, _ = loaded(folder, wanted, Lists, limits)
    x = torch.randn(2, 8)
    with machine.strict():
        out = model(x)
        out.square().sum().backward()
    expected = oracle(x)
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected)
    for one, two in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
