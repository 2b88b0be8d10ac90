"""Subtrees that load themselves: each runs its loaders once, when its last tensor has arrived."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import MismatchError, OnDevice, build_shell, fill, open_checkpoint
from shardload.loading.subtrees import Subtrees
from tests.loading.hooked import Joining, Model, unfused
from tests.tiny import write_checkpoint


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"target": OnDevice(dtype=torch.float16)}])
def test_a_hook_that_fuses_gets_all_its_tensors_from_two_shards(tmp_path, options):
    state = unfused()
    shell = build_shell(Model)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, shards=3)), **options)
    fused = torch.cat([state["attn.q"], state["attn.k"], state["attn.v"]])
    assert torch.equal(shell.model.attn.qkv, fused.to(shell.model.out.weight.dtype))


def test_what_an_override_computes_keeps_its_dtype_in_a_cast(tmp_path):
    class Computing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.register_buffer("inverse", torch.zeros(3), persistent=False)

        def _load_from_state_dict(self, state, prefix, *args) -> None:
            super()._load_from_state_dict(state, prefix, *args)
            if not state[f"{prefix}weight"].is_meta:
                self.inverse = 1 / state[f"{prefix}weight"]

    shell = build_shell(Computing)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"weight": torch.full((3,), 3.0)}, shards=1))
    fill(shell, checkpoint, target=OnDevice(dtype=torch.bfloat16))
    assert shell.model.weight.dtype == torch.bfloat16
    assert shell.model.inverse.dtype == torch.float32


def test_what_a_hook_drops_is_not_counted_as_loaded(tmp_path):
    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.register_load_state_dict_pre_hook(
            lambda _m, state, prefix, *_: state.pop(f"{prefix}junk", None)
        )
        return model

    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2), "junk": torch.ones(9)}
    report = fill(build_shell(make), open_checkpoint(write_checkpoint(tmp_path, state)))
    assert report.loaded == 2
    assert any("was handed 3 tensors and filled 2" in note for note in report.notes)


@pytest.mark.parametrize("error", [KeyError, ValueError, RuntimeError])
def test_a_hook_that_fails_at_the_load_is_a_typed_error(tmp_path, error):
    state = {
        "0.a": torch.ones(2),
        "0.b": torch.ones(2),
        "1.weight": torch.ones(1, 1),
        "1.bias": torch.ones(1),
    }
    model = nn.Sequential(Joining(error), nn.Linear(1, 1))
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(MismatchError, match="on purpose") as caught:
        fill(model, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert isinstance(caught.value.__cause__, error)
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_a_subtree_is_loaded_with_its_last_tensor_and_holds_none_after(tmp_path, monkeypatch):
    events = []
    deliver, run = Subtrees.deliver, Subtrees._walk

    def delivering(self, root, key, stored):
        events.append(key)
        deliver(self, root, key, stored)
        events.append(sorted(self._arrived.get(root, ())))

    monkeypatch.setattr(Subtrees, "deliver", delivering)
    monkeypatch.setattr(Subtrees, "_walk", lambda self, root: (events.append("loads"), run(self, root)))
    model = nn.Sequential(Joining(), Joining())
    state = {"0.a": torch.ones(2), "1.a": torch.ones(2), "0.b": torch.zeros(2), "1.b": torch.zeros(2)}
    fill(model, open_checkpoint(write_checkpoint(tmp_path, state, shards=1)))
    assert events == ["0.a", ["0.a"], "0.b", "loads", [], "1.a", ["1.a"], "1.b", "loads", []]
    assert model[0].weight.tolist() == model[1].weight.tolist() == [1, 1, 0, 0]


def test_a_subtree_that_needs_no_tensor_is_loaded_too(tmp_path):
    class Needless(nn.Module):
        def __init__(self):
            super().__init__()
            self.runs = 0

        def _load_from_state_dict(self, *_args):
            self.runs += 1

    model = nn.Sequential(Needless(), nn.Linear(2, 2))
    fill(
        model,
        open_checkpoint(write_checkpoint(tmp_path, {"1.weight": torch.ones(2, 2), "1.bias": torch.ones(2)})),
    )
    assert model[0].runs == 1
