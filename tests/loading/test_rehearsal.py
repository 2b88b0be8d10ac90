"""Hooks are rehearsed on meta tensors before the load, which leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import MismatchError, build_shell, check, fill, open_checkpoint
from shardload.loading.plan import Plan
from shardload.loading.rehearsal import rehearse
from tests.loading.hooked import Joining, Model, unfused
from tests.tiny import Net, random_state, write_checkpoint


def test_hooks_run_twice_first_on_meta(tmp_path):
    shell = build_shell(Model)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, unfused())))
    assert shell.model.attn.runs == ["cpu"], "what the rehearsal appended is taken back"
    runs: list[str] = []
    shell = build_shell(Model)
    shell.model.attn._register_load_state_dict_pre_hook(
        lambda state, *_: runs.append(str(state["attn.qkv"].device))
    )
    fill(shell, open_checkpoint(tmp_path))
    assert runs == ["meta", "cpu"]


def test_the_rehearsal_judges_hooks_and_leaves_parameters_buffers_and_ties_alone(tmp_path):
    state = unfused()
    model = Model()
    wrapped = nn.ModuleDict({"m": model})
    wrapped.register_load_state_dict_pre_hook(lambda *_: None)
    parameters = {name: id(p) for name, p in wrapped.named_parameters(remove_duplicate=False)}
    named = {f"m.{key}": value for key, value in state.items()}
    assert check(wrapped, open_checkpoint(write_checkpoint(tmp_path / "good", named))).ok
    named["m.attn.v"] = torch.randn(2, 4)
    report = check(wrapped, open_checkpoint(write_checkpoint(tmp_path / "bad", named)))
    assert [(f.kind, f.key) for f in report.faults] == [("misshapen", "m.attn.qkv")]
    assert {f"m.{name}": id(p) for name, p in model.named_parameters(remove_duplicate=False)} == parameters
    assert model.tied.weight is model.out.weight
    assert not any(p.is_meta for p in model.parameters())


def test_a_rehearsal_that_fails_leaves_the_model_alone_too(tmp_path):
    class Breaking(Model):
        def __init__(self) -> None:
            super().__init__()
            self.attn.register_load_state_dict_post_hook(lambda *_: 1 / 0)

    model = Breaking()
    ids = {name: id(p) for name, p in model.named_parameters()}
    check(model, open_checkpoint(write_checkpoint(tmp_path, unfused())))
    assert {name: id(p) for name, p in model.named_parameters()} == ids


class Looking(nn.Module):
    """A hook that reads values, which can't be rehearsed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self._register_load_state_dict_pre_hook(self._look)

    def _look(self, state, prefix, *_args) -> None:
        if float(state[f"{prefix}weight"].sum()) < 0:
            state[f"{prefix}wrong"] = state.pop(f"{prefix}weight")


def test_a_hook_that_looks_at_values_is_judged_at_the_load(tmp_path):
    good = open_checkpoint(write_checkpoint(tmp_path / "good", {"weight": torch.ones(3)}, shards=1))
    bad = open_checkpoint(write_checkpoint(tmp_path / "bad", {"weight": -torch.ones(3)}, shards=1))
    report = check(build_shell(Looking), good)
    assert report.ok
    assert any("can't be rehearsed" in note for note in report.notes)
    shell = build_shell(Looking)
    fill(shell, good)
    assert torch.equal(shell.model.weight, torch.ones(3))
    shell = build_shell(Looking)
    with pytest.raises(MismatchError, match="1 missing"):
        fill(shell, bad)
    assert shell.model.weight.is_meta


def test_a_complex_weight_for_a_real_one_is_refused_below_a_hook_too(tmp_path):
    def make() -> nn.Module:
        model = nn.Linear(2, 2, bias=False)
        model.register_load_state_dict_pre_hook(lambda *_: None)
        return model

    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path, {"weight": torch.ones(2, 2, dtype=torch.complex64)}, kind="bin", shards=1)
    )
    with pytest.raises(MismatchError, match="holds real numbers"):
        fill(build_shell(make), checkpoint)


def test_a_stored_copy_of_a_computed_buffer_is_a_note_below_a_hook_too(tmp_path):
    class Hooked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_load_state_dict_pre_hook(lambda *_: None)

    state = {**random_state(Net()), "layers.0.scale": torch.zeros(1)}
    shell = build_shell(Hooked)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert float(shell.model.layers[0].scale) == 0.5
    assert any("layers.0.scale: a stored copy" in note for note in report.notes)


@pytest.mark.parametrize("where", ["", "0."])
def test_a_hook_that_misses_a_name_is_a_fault_before_a_weight_is_read(tmp_path, where):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {f"{where}a": torch.ones(2)}, shards=1))
    shell = build_shell(lambda: nn.Sequential(Joining()) if where else Joining())
    (fault,) = check(shell, checkpoint).faults
    assert fault.kind == "refused"
    assert fault.key == ("0" if where else "Joining")
    with pytest.raises(
        MismatchError, match=rf"a load_state_dict hook on Joining failed: KeyError: '{where}b'"
    ):
        fill(shell, checkpoint)


@pytest.mark.parametrize(("error", "unproven"), [(KeyError, False), (RuntimeError, True)])
def test_a_loader_that_fails_on_meta_is_a_fault_only_where_it_asks_for_a_name(error, unproven):
    class Failing(nn.Linear):
        def _load_from_state_dict(self, *_args):
            raise error("x")

    shell = build_shell(lambda: nn.Sequential(Failing(2, 2)))
    tree = shell.tree
    plan = Plan(handed={root.prefix: {} for root in tree.self_loading})
    before = dict(shell.model[0]._parameters)
    notes = rehearse(plan, shell, tree.self_loading, {})
    assert bool(notes) is unproven
    assert bool(plan.faults) is not unproven
    assert plan.in_place == ({"0.weight", "0.bias"} if unproven else set())
    assert all(shell.model[0]._parameters[name] is value for name, value in before.items())
