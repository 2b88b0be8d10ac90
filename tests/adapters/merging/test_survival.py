"""The share of a delta that survives the rounding."""

from __future__ import annotations

import pytest
import torch

from shardload import (
    merge_to_disk,
    open_checkpoint,
)
from tests.adapters.merging.disk import (
    base_of,
    small_delta,
)


def test_the_share_that_survived(tmp_path):
    """Against the definition, on whole tensors; and the warning names what helps."""
    base = base_of(tmp_path / "base", torch.bfloat16)
    report = merge_to_disk(base, small_delta(tmp_path / "lora", 3e-4), tmp_path / "out")
    before, after = open_checkpoint(base), open_checkpoint(tmp_path / "out")
    wide = merge_to_disk(base, small_delta(tmp_path / "lora", 3e-4), tmp_path / "wide", dtype="float64")
    exact = open_checkpoint(tmp_path / "wide")
    for row in report.tensors:
        delta = exact.read(row.name).double() - before.read(row.name).double()
        arrived = after.read(row.name).double() - before.read(row.name).double()
        assert row.share == pytest.approx(((arrived * delta).sum() / delta.square().sum()).item(), rel=1e-2)
        relative = delta.norm() / before.read(row.name).double().norm()
        assert row.relative == pytest.approx(relative.item(), rel=1e-3)
    assert report.least_share < 0.9
    [warning] = [text for text in report.warnings if "survived" in text]
    assert "dtype='float32'" in warning
    assert "rounding='stochastic'" in warning
    assert f"{report.least_share:.2f}" in warning
    assert wide.least_share == pytest.approx(1.0, abs=1e-4)
    assert not [text for text in wide.warnings if "survived" in text]
