"""Which way round a weight lies, told from headers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    UnsupportedError,
    merge_to_disk,
    open_checkpoint,
)
from shardload.adapters.merging.skeleton import Conv1D, skeleton_of
from shardload.adapters.source import open_adapter, read_content
from tests.adapters import tiny
from tests.adapters.merging.disk import (
    assert_holds,
    refused,
)
from tests.adapters.tiny import PREFIX
from tests.tiny import write_checkpoint


@pytest.fixture
def square(tmp_path):
    """A square layer beside a transposed one: the headers tell that layers of this name are transposed."""

    def make(beside):
        state = {"h.0.c_proj.weight": torch.randn(6, 6), "h.0.c_proj.bias": torch.zeros(6), **beside}
        folder = write_checkpoint(tmp_path / f"base{len(beside)}", state, shards=1)
        tensors = {
            f"{tiny.PREFIX}h.0.c_proj.lora_A.weight": torch.randn(2, 6),
            f"{tiny.PREFIX}h.0.c_proj.lora_B.weight": torch.randn(6, 2),
        }
        return folder, state, tensors

    return make


@pytest.mark.parametrize("flag", [True, False])
def test_a_square_transposed_layer(tmp_path, square, flag):
    beside = {"h.1.c_proj.weight": torch.randn(24, 6), "h.1.c_proj.bias": torch.zeros(6)}
    base, state, tensors = square(beside)
    adapter = tiny.write(tmp_path / "lora", tensors, tiny.config(fan_in_fan_out=flag))
    merge_to_disk(base, adapter, tmp_path / "out")
    a, b = tensors.values()
    delta = (torch.mm(b, a) * 3.0).T
    wanted = {**state, "h.0.c_proj.weight": state["h.0.c_proj.weight"] + delta}
    assert_holds(tmp_path / "out", wanted)


def test_a_square_layer_of_which_nothing_tells(tmp_path, square):
    base, state, tensors = square({})
    adapter = tiny.write(tmp_path / "lora", tensors, tiny.config(fan_in_fan_out=True))
    error = refused(tmp_path, base, adapter, UnsupportedError, "which way round")
    assert "merge=True" in error.cure
    merge_to_disk(base, tiny.write(tmp_path / "plain", tensors), tmp_path / "out")
    a, b = tensors.values()
    wanted = {**state, "h.0.c_proj.weight": state["h.0.c_proj.weight"] + torch.mm(b, a) * 3.0}
    assert_holds(tmp_path / "out", wanted)


def test_a_skeleton_has_every_stored_name_on_meta_and_the_adapter_s_layers_their_class(tmp_path):
    model = nn.ModuleDict({
        "up": nn.Linear(4, 6), "conv": nn.Conv1d(4, 6, 3), "norm": nn.LayerNorm(4), "words": nn.Embedding(9, 4),
    })  # fmt: skip
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "base", model.state_dict(), shards=1))
    adapter = {
        f"{PREFIX}up.lora_A.weight": torch.ones(2, 4), f"{PREFIX}up.lora_B.weight": torch.ones(6, 2),
        f"{PREFIX}conv.lora_A.weight": torch.ones(2, 4, 3), f"{PREFIX}conv.lora_B.weight": torch.ones(6, 2, 1),
    }  # fmt: skip
    content = read_content(open_adapter(tiny.write(tmp_path / "lora", adapter)))
    made = skeleton_of(checkpoint, content, {})
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }
    assert all(parameter.is_meta for parameter in made.parameters())
    assert [type(made.get_submodule(name)) for name in ("up", "conv", "norm")] == [
        nn.Linear,
        nn.Conv1d,
        nn.Module,
    ]


@pytest.mark.parametrize("stored", [(4, 6), (6, 4)])
def test_a_weight_that_only_fits_turned_is_transposed(tmp_path, stored):
    checkpoint = open_checkpoint(
        write_checkpoint(
            tmp_path / "base", {"up.weight": torch.ones(stored), "up.bias": torch.ones(6)}, shards=1
        )
    )
    adapter = {f"{PREFIX}up.lora_A.weight": torch.ones(2, 4), f"{PREFIX}up.lora_B.weight": torch.ones(6, 2)}
    content = read_content(open_adapter(tiny.write(tmp_path / "lora", adapter)))
    assert isinstance(skeleton_of(checkpoint, content, {}).up, nn.Linear if stored == (6, 4) else Conv1D)
