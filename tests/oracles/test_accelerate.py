"""accelerate's load_checkpoint_and_dispatch as the oracle."""

from __future__ import annotations

import pytest
import torch

from shardload import build_shell, fill, open_checkpoint
from tests.tiny import Net, assert_same_state, random_state, write_checkpoint

accelerate = pytest.importorskip("accelerate")

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_the_same_as_load_checkpoint_and_dispatch(tmp_path, kind, dtype):
    write_checkpoint(tmp_path, random_state(Net(), dtype), kind=kind)
    with accelerate.init_empty_weights(include_buffers=False):
        theirs = Net()
    theirs = accelerate.load_checkpoint_and_dispatch(
        theirs, tmp_path, device_map={"": "cpu"}, dtype=dtype
    ).eval()
    shell = build_shell(Net)
    fill(shell, open_checkpoint(tmp_path))
    assert_same_state(shell.model, theirs)
    if dtype is None:
        assert torch.equal(shell.model.eval()(IDS), theirs(IDS))
