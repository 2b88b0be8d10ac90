"""Rounding, to nearest and at random."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    UsageError,
    merge_to_disk,
)
from shardload.adapters.merging.rounding import Rounding, check_rounding
from tests.adapters import tiny
from tests.tiny import write_checkpoint

HALVES = [torch.bfloat16, torch.float16]


def values(dtype):
    random = torch.Generator().manual_seed(1)
    spread = torch.randn(20_000, generator=random) * 10.0 ** torch.randint(-9, 4, (20_000,), generator=random)
    return spread if dtype is torch.bfloat16 else spread.clamp(-60_000, 60_000)


def neighbours(wide, dtype):
    """The nearest values of the narrow dtype below and above, by torch's own nextafter."""
    near = wide.to(dtype)
    down = torch.nextafter(near, torch.tensor(-torch.inf, dtype=dtype))
    up = torch.nextafter(near, torch.tensor(torch.inf, dtype=dtype))
    below = torch.where(near.float() <= wide, near, down)
    above = torch.where(near.float() >= wide, near, up)
    return below, above


@pytest.mark.parametrize("dtype", HALVES)
def test_nearest_is_torch_s(dtype):
    wide = values(dtype)
    assert torch.equal(Rounding("nearest", 0, "w")(wide, dtype), wide.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_gives_a_neighbour(dtype):
    wide = values(dtype)
    below, above = neighbours(wide, dtype)
    seen_below = seen_above = 0
    for seed in range(4):
        rounded = Rounding("stochastic", seed, "w")(wide, dtype)
        assert bool(((rounded == below) | (rounded == above)).all())
        apart = below != above
        seen_below += int((rounded == below)[apart].sum())
        seen_above += int((rounded == above)[apart].sum())
    assert 0.4 < seen_below / (seen_below + seen_above) < 0.6


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1.0, 3e-6])  # 3e-6 is subnormal in fp16
def test_stochastic_is_right_on_average(dtype, sign, size):
    below, above = neighbours(torch.tensor([size * 1.0001]), dtype)
    low, high = below.float().item(), above.float().item()
    for part in (0.1, 0.5, 0.8):
        wide = torch.full((100_000,), sign * (low + part * (high - low)))
        mean = Rounding("stochastic", 3, "w")(wide, dtype).double().mean().item()
        assert abs((abs(mean) - low) / (high - low) - part) < 0.01


def test_what_needs_no_rounding_stays():
    dtype = torch.float32
    exact = torch.arange(-300, 300).float()
    assert torch.equal(Rounding("stochastic", 0, "w")(exact.half().float(), torch.float16), exact.half())
    assert torch.equal(Rounding("stochastic", 0, "w")(exact, dtype), exact)
    assert torch.equal(Rounding("stochastic", 0, "w")(exact.double(), dtype), exact)


def test_blocks_give_the_bits_of_the_whole():
    wide = torch.randn(1000, 7)
    whole = Rounding("stochastic", 5, "w")(wide, torch.bfloat16)
    rounder = Rounding("stochastic", 5, "w")
    parts = [rounder(block, torch.bfloat16) for block in wide.split(137)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(Rounding("stochastic", 6, "w")(wide, torch.bfloat16), whole)
    assert not torch.equal(Rounding("stochastic", 5, "v")(wide, torch.bfloat16), whole)


def test_kinds():
    assert [check_rounding(kind) for kind in ("nearest", "stochastic")] == ["nearest", "stochastic"]
    with pytest.raises(UsageError, match="'up' is not known"):
        check_rounding("up")


def test_stochastic_rounding_keeps_the_delta_and_is_reproducible(tmp_path):
    model = nn.Sequential(nn.Linear(300, 400, bias=False)).bfloat16()
    base = write_checkpoint(tmp_path / "base", model.state_dict(), shards=1)
    random = torch.Generator().manual_seed(0)
    tensors = {
        f"{tiny.PREFIX}0.lora_A.weight": torch.randn(2, 300, generator=random),
        f"{tiny.PREFIX}0.lora_B.weight": torch.randn(400, 2, generator=random) * 1e-6,
    }
    adapter = tiny.write(tmp_path / "lora", tensors)
    nearest = merge_to_disk(base, adapter, tmp_path / "nearest")
    options = {"rounding": "stochastic"}
    report = merge_to_disk(base, adapter, tmp_path / "one", **options, seed=1)
    assert nearest.least_share < 0.5
    assert abs(report.least_share - 1) < 0.1
    merge_to_disk(base, adapter, tmp_path / "two", **options, seed=1)
    merge_to_disk(base, adapter, tmp_path / "three", **options, seed=2)
    one, two, three = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two", "three"))
    assert one == two != three
