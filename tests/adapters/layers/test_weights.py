"""Layers that read their weights themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    UsageError,
    adapter_batch,
    load_adapter,
)
from tests.adapters.tiny import (
    PREFIX,
    write,
)


def test_a_module_that_reads_its_weights_itself(tmp_path):
    model = nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True)).eval()
    tensors = {f"{PREFIX}0.lora_A.weight": torch.ones(2, 4), f"{PREFIX}0.lora_B.weight": torch.ones(12, 2)}
    load_adapter(model, write(tmp_path, tensors), name="a")
    x = torch.randn(2, 3, 4)
    wanted = model[0](x, x, x)[0]
    with adapter_batch(model, ["a", "a"]):
        assert torch.equal(model[0](x, x, x)[0], wanted)
    with adapter_batch(model, ["a", None]), pytest.raises(UsageError, match="reads its weights itself"):
        model[0](x, x, x)
