"""Tensors are streamed from shards into modules."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from shardload import CorruptError, MismatchError, OnDevice, build_shell, fill, open_checkpoint
from tests.loading.hooked import Joining, Model, unfused
from tests.tiny import Net, assert_same_state, random_state, run_python, torch_filled, write_checkpoint


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


def test_each_parameter_has_a_storage_of_its_own_extent(tmp_path):
    state = random_state(Net())
    shell = build_shell(Net)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    for parameter in shell.model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


def test_a_legacy_pickle_is_loaded_without_holding_it_whole(tmp_path):
    """torch reads such a file into memory whole; its storages lie one after the other and can be read one by one."""
    state = random_state(Net())
    shell = build_shell(Net)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, kind="legacy", shards=1)))
    assert report.format == "torch legacy"
    assert_same_state(shell.model, torch_filled(Net, state))


def test_a_file_that_changes_while_it_is_loaded_is_noticed(tmp_path):
    folder = write_checkpoint(tmp_path, random_state(Net()), shards=1)
    path = folder / "model.safetensors"

    def touch(_progress: object) -> None:
        os.utime(path, ns=(1, 1))

    shell = build_shell(Net)
    with pytest.raises(CorruptError, match="changed while it was being loaded"):
        fill(shell, open_checkpoint(folder), progress=touch)
    assert all(p.is_meta for p in shell.model.parameters())


def test_copy_true_survives_a_file_that_is_cut_later(tmp_path):
    """A mapped weight would kill the process with SIGBUS; a copied weight no longer needs the file."""
    folder = write_checkpoint(tmp_path, {"weight": torch.ones(512, 1024), "bias": torch.ones(512)}, shards=1)
    code = """
import os, sys, torch
from shardload import build_shell, fill, open_checkpoint
shell = build_shell(lambda: torch.nn.Linear(1024, 512))
fill(shell, open_checkpoint(sys.argv[1]), copy=True)
os.truncate(sys.argv[1] + "/model.safetensors", 100)
print(float(shell.model.weight.sum()))
"""
    assert run_python(code, str(folder)).stdout.strip() == str(float(512 * 1024))


class Noting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.linear.weight.no_weight_decay = True
        self.late = nn.Linear(2, 2)
        self.late.weight = nn.Parameter(torch.ones(2, 2)[:])
        self.late.weight.group = "late"
        self.register_load_state_dict_post_hook(lambda *_: None)


@pytest.mark.parametrize("built_for_real", [False, True], ids=["shell", "real"])
@pytest.mark.parametrize("kind", ["plain", "hooked"])
def test_what_is_noted_on_a_parameter_stays(tmp_path, built_for_real, kind):
    def make() -> nn.Module:
        model = Noting()
        if kind == "plain":
            model._load_state_dict_post_hooks.clear()
        return model

    filled = make() if built_for_real else build_shell(make)
    model = filled if built_for_real else filled.model
    fill(filled, open_checkpoint(write_checkpoint(tmp_path, random_state(model))))
    assert model.linear.weight.no_weight_decay
    assert model.late.weight.group == "late"


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
