"""Which way round a weight lies, told from headers."""

from __future__ import annotations

import pytest
import torch

from shardload import (
    UnsupportedError,
    merge_to_disk,
)
from tests.adapters import tiny
from tests.adapters.merging.disk import (
    assert_holds,
    refused,
)
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
