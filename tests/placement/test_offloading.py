"""Blocks that run where their weights do not lie: gradients, adapters, activation checkpoints, buffers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed

from shardload import (
    attach_lora,
    save,
)
from shardload.placement.offloading import Ahead, stamp_of
from tests.placement.machine_double import IDS, OFFLOADED, Double, Plain, loaded
from tests.tiny import Block, random_state, torch_filled, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("net"), random_state(Plain()), shards=2)


def losses(model, machine, mode: str, steps: int = 2) -> list[float]:
    """Train what is trainable; "checkpoint" and "reentrant" run each block twice, as activation checkpoints do."""
    torch.manual_seed(5)
    model.train()
    model.stats.eval()
    found = []
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, 1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        with machine.strict() if machine else torch.enable_grad():
            if mode == "plain":
                out = model(IDS)
            else:
                x = model.embed(
                    IDS if machine is None else machine.moved(IDS, machine.where(model.embed.weight))
                )
                x = x.requires_grad_()
                for layer in model.layers:
                    x = recomputed(layer, x, use_reentrant=mode == "reentrant")
                out = model.head(model.stats(x.transpose(1, 2)).transpose(1, 2))
            loss = (out / 1000).square().mean()
            loss.backward()
        found.append(loss.item())
        optimizer.step()
    return found


@pytest.mark.parametrize(
    ("mode", "base", "dora"),
    [
        ("plain", False, False),
        ("plain", True, True),
        ("checkpoint", False, True),
        ("checkpoint", True, False),
        ("reentrant", True, False),
    ],
)
def test_adapters_in_offloaded_blocks_train_as_on_one_device(folder, mode, base, dora):
    def attached(model):
        attach_lora(model, r=2, alpha=8, targets=["up", "down"], use_dora=dora, init="gaussian", seed=3)
        if base:
            model.requires_grad_(True)
        for name, each in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(each, 0.02)
        return model

    one = torch_filled(Plain, random_state(Plain()))
    model, machine, _ = loaded(folder, {"": 0, "layers.1": "cpu", "layers.2": "disk", "embed": 0})
    attached(one), attached(model)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    theirs, ours = losses(one, None, mode), losses(model, machine, mode)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] != ours[0]
    grads = {name: each.grad for name, each in one.named_parameters() if each.requires_grad}
    assert sum("layers.2" in name and "lora" in name for name in grads) >= 4
    for name, each in model.named_parameters():
        assert (each.grad is None) == (name not in grads), name
        if name in grads:
            torch.testing.assert_close(each.grad, grads[name], rtol=1e-3, atol=1e-6, msg=name)
            assert each.grad.abs().sum() > 0, name
            assert not torch.equal(each.detach(), before[name]), name
            assert machine.where(each.grad) == machine.where(each), name
    model.eval(), one.eval()
    with machine.strict(), torch.no_grad():
        torch.testing.assert_close(model(IDS), one(IDS), rtol=1e-4, atol=1e-2)
    assert_close_states(model, one)


def assert_close_states(model, oracle):
    ours, theirs = model.state_dict(), oracle.state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-5, msg=key)


def test_a_dora_factor_is_not_kept_of_copies_that_lay_in_the_same_memory(folder):
    model, machine, _ = loaded(folder, OFFLOADED)
    one = torch_filled(Plain, random_state(Plain()))
    for each in (model, one):
        attach_lora(each, r=2, alpha=8, targets=["up"], use_dora=True, init="gaussian", seed=3)
    for value in (0.1, 0.5):
        for each in (model, one):
            each.eval()
            for name, parameter in each.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.constant_(parameter, value)
        with machine.strict(), torch.no_grad():
            torch.testing.assert_close(model(IDS), one(IDS))


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_activation_checkpoint_around_an_offloaded_block_still_drops_its_activations(folder, reentrant):
    model, machine, _ = loaded(folder, OFFLOADED)
    runs = []
    model.layers[2].norm.register_forward_hook(lambda *_: runs.append(1))
    x = torch.randn(2, 3, 8, requires_grad=True)
    with machine.strict():
        out = recomputed(model.layers[2], x, use_reentrant=reentrant)
        assert machine.held() == 0
        out.sum().backward()
    assert len(runs) == 2
    one = torch_filled(Plain, random_state(Plain())).layers[2]
    y = x.detach().clone().requires_grad_()
    one(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for name, each in model.layers[2].named_parameters():
        torch.testing.assert_close(each.grad, dict(one.named_parameters())[name].grad)


def test_second_derivatives_go_through_a_brought_weight(folder):
    model, machine, _ = loaded(folder, OFFLOADED)
    one = torch_filled(Plain, random_state(Plain()))
    found = []
    for each in (model.layers[2], one.layers[2]):
        x = torch.linspace(0, 1, 8).reshape(1, 8).requires_grad_()
        (first,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, each.up.weight]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert machine.held() == 0


def test_a_weight_that_was_written_to_before_its_backward_is_refused(folder):
    model, _, _ = loaded(folder, OFFLOADED)
    loss = model(IDS).sum()
    with torch.no_grad():
        model.layers[1].down.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation: an offloaded weight"):
        loss.backward()


def test_an_activation_that_was_written_to_is_refused_as_torch_does_it(folder):
    class Writes(Block):
        def forward(self, x):
            y = torch.exp(self.up(x))
            out = y.sum()
            y.mul_(2)
            return out

    model, _, _ = loaded(folder, OFFLOADED)
    model.layers[1].__class__ = Writes
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model.layers[1](torch.ones(1, 8)).backward()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_buffers_that_a_forward_writes_to_are_written_back(folder, mode):
    model, machine, _ = loaded(folder, {"": 0, "stats": "disk"})
    one = torch_filled(Plain, random_state(Plain()))
    model.train(), one.train()
    for _ in range(2):
        with machine.strict(), mode():
            model(IDS)
        one(IDS)
    assert int(model.stats.num_batches_tracked) == int(one.stats.num_batches_tracked)
    torch.testing.assert_close(model.stats.running_var, one.stats.running_var)


class Recurrent(nn.Module):
    """An LSTM keeps a list of its weights; a block that replaces its buffer; arguments in all kinds of containers."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.layers = nn.ModuleList(Mixing() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.rnn(x)
        kept = []
        for layer in self.layers:
            x = layer(x, also={"pair": (x, [x])}, kept=kept)
        assert len(kept) == 2
        return x


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, *, also, kept):
        kept.append(1)
        self.count = self.count + 1
        return self.mix(x) + also["pair"][0] + also["pair"][1][0]


def test_modules_that_keep_or_replace_their_tensors(tmp_path):
    torch.manual_seed(4)
    oracle = Recurrent().eval()
    save(oracle, tmp_path)
    model, machine, _ = loaded(tmp_path, {"": 0, "rnn": "cpu", "layers.1": "cpu"}, Recurrent)
    x = torch.randn(2, 3, 4)
    for _ in range(2):
        with machine.strict():
            model(x).sum().backward()
        oracle(x).sum().backward()
    assert machine.where(model.layers[1].count) == "cpu"
    assert model.layers[1].count == 2
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, dict(oracle.named_parameters())[name].grad, msg=name)
    del each
    assert all(any(own is each for each in model.rnn.parameters()) for own in model.rnn._flat_weights)
    assert machine.held() == 0


def test_what_was_fetched_ahead_is_taken_once_and_only_while_it_is_the_same():
    machine = Double()
    ahead, source = Ahead(machine), torch.arange(4.0)
    ahead.begin([source], "double:0")
    (first,) = ahead.take([source], "double:0")
    (second,) = ahead.take([source], "double:0")
    assert (machine.fetches, machine.waiting, first is second) == (2, 0, False)
    ahead.begin([source], "double:0")
    source.add_(1)
    (third,) = ahead.take([source], "double:0")
    assert torch.equal(third, torch.arange(1.0, 5.0))
    assert machine.waiting == 0
    ahead.begin([source], "double:0")
    ahead.drop()
    assert machine.waiting == 0


def test_a_copy_has_the_stamp_of_what_it_was_copied_from():
    source, brought = torch.zeros(3), torch.zeros(3)
    brought._shardload_source = source
    before = stamp_of(brought)
    assert before == stamp_of(source)
    source.add_(1)
    assert stamp_of(brought) == stamp_of(source) != before
