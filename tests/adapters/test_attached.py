"""The record of a model's adapters: a load that could not reach the base's own tensors is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    UsageError,
    attach_lora,
    delete_adapter,
    fill,
    merge,
    open_checkpoint,
    save,
    set_adapter,
    unmerge,
)
from shardload.adapters.attached import Adapters


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))


@pytest.fixture
def checkpoint(tmp_path):
    save(make(), tmp_path / "base")
    return open_checkpoint(tmp_path / "base")


def test_nothing_attached_is_nothing_refused():
    Adapters().refuse_fill()


def test_a_merged_model_is_not_filled_until_it_is_unmerged(checkpoint):
    model = make()
    attach_lora(model, r=2, targets=["0"], init=False, seed=0)
    merge(model, keep_copies=True)
    with pytest.raises(UsageError, match="merged") as caught:
        fill(model, checkpoint)
    assert "unmerge(model)" in caught.value.cure
    unmerge(model)
    fill(model, checkpoint)


@pytest.mark.parametrize("active", [True, False])
def test_a_model_whose_adapter_replaces_tensors_is_not_filled(checkpoint, active):
    model = make()
    attach_lora(model, r=2, targets=["0"], modules_to_save=["1"])
    if not active:
        set_adapter(model, [])
    with pytest.raises(UsageError, match="keep the base's own tensors"):
        fill(model, checkpoint)
    delete_adapter(model, "default")
    fill(model, checkpoint)
