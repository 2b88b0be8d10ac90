"""Tensors are streamed from shards into modules."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from shardload import CorruptError, OnDevice, build_shell, fill, open_checkpoint
from shardload.loading.judge import Comparison
from shardload.loading.stream import stream
from tests.tiny import Net, assert_same_state, random_state, run_python, torch_filled, write_checkpoint


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


def test_the_stream_fills_what_the_plan_says_shard_by_shard(tmp_path):
    state = {"weight": torch.ones(2, 3), "bias": torch.arange(2.0)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=2))
    shell = build_shell(lambda: nn.Linear(3, 2))
    target = OnDevice()
    comparison = Comparison(shell, checkpoint, None, target)
    seen = []
    assert stream(comparison, target, copy=False, progress=lambda at: seen.append(at.done_bytes)) == set(
        state
    )
    report = comparison.report
    assert [(row.tensors, row.nbytes) for row in report.shards] == [(1, 24), (1, 8)]
    assert (report.loaded, report.nbytes, report.dtypes) == (2, 32, {"float32": 2})
    assert seen == [24, 32]
    assert all(torch.equal(shell.model.state_dict()[name], value) for name, value in state.items())
