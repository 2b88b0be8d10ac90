"""loralib's files do not hold alpha, nor the parts that are on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.adapters import load_adapter
from shardload.errors import (
    ShardloadError,
    UsageError,
)


def test_loralib_needs_alpha_and_the_parts_that_are_on(tmp_path):
    path = tmp_path / "lora.pt"
    torch.save({"fused.lora_A": torch.randn(4, 8), "fused.lora_B": torch.randn(16, 2)}, path)
    model = nn.ModuleDict({"fused": nn.Linear(8, 24)})
    with pytest.raises(UsageError, match="pass alpha="):
        load_adapter(model, path)
    with pytest.raises(ShardloadError, match="pass enable_lora="):
        load_adapter(model, path, alpha=4)
    report = load_adapter(model, path, alpha=4, enable_lora=[True, False, True])
    assert (report.ranks, report.scales) == ({2: 1}, {2.0: 1})
    x = torch.randn(3, 8)
    change = model.fused(x) - nn.functional.linear(x, model.fused.weight, model.fused.bias)
    assert not change[:, 8:16].any()
    assert change[:, :8].any()
    assert change[:, 16:].any()
