"""Fused experts whose layout or order nothing tells: refused, never guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import merge_to_disk
from shardload.adapters import load_adapter
from shardload.adapters.layers.experts import ExpertsTerm
from shardload.adapters.layers.term import Factors
from shardload.errors import UnsupportedError
from tests.adapters.tiny import config, write
from tests.tiny import write_checkpoint

EXPERTS, WIDTH, RANK = 3, 8, 2


class Mirrored(nn.Module):
    """Two parameters of which one has the shape of the other turned round."""

    def __init__(self, inner):
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, inner))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, inner, WIDTH))


def model(inner):
    return nn.ModuleDict({"experts": Mirrored(inner)})


def adapter(folder, inner, **settings):
    tensors = {
        "experts.base_layer.lora_A.weight": torch.randn(EXPERTS * RANK, WIDTH),
        "experts.base_layer.lora_B.weight": torch.randn(inner, RANK * EXPERTS),
        "experts.lora_A.weight": torch.randn(EXPERTS * RANK, inner),
        "experts.lora_B.weight": torch.randn(WIDTH, RANK * EXPERTS),
    }
    targets = ["experts.up_proj", "experts.down_proj"]
    named = {f"base_model.model.{key}": value for key, value in tensors.items()}
    return write(folder, named, config(target_parameters=targets, **settings))


def test_square_experts_of_an_unknown_version(tmp_path):
    with pytest.raises(UnsupportedError, match="square experts in 'down_proj'"):
        load_adapter(model(WIDTH), adapter(tmp_path / "unknown", WIDTH))
    for version in ("0.18.0", "0.19.0"):
        load_adapter(model(WIDTH), adapter(tmp_path / version, WIDTH, peft_version=version))


def test_headers_do_not_tell_mirrored_parameters_apart(tmp_path):
    base = model(6)
    write_checkpoint(tmp_path / "base", base.state_dict(), shards=1)
    folder = adapter(tmp_path / "adapter", 6, peft_version="0.21.2")
    with pytest.raises(UnsupportedError, match="nor the shapes tell which"):
        merge_to_disk(tmp_path / "base", folder, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    report = load_adapter(base, folder)
    assert {row.target for row in report.rows} == {
        f"experts.lora_{part}.default.{name}" for part in "AB" for name in ("up_proj", "down_proj")
    }


@pytest.mark.parametrize("inputs_first", [False, True])
def test_every_expert_has_its_own_rows_of_a_and_columns_of_b(inputs_first):
    experts, rank, into, out = 3, 2, 5, 4
    a, b = torch.randn(experts * rank, into).double(), torch.randn(out, rank * experts).double()
    shape = (experts, into, out) if inputs_first else (experts, out, into)
    made = ExpertsTerm(rank, 3.0, inputs_first=inputs_first).delta(Factors(a, b), shape)
    for expert in range(experts):
        one = 3.0 * b[:, expert::experts] @ a[expert * rank : (expert + 1) * rank]
        torch.testing.assert_close(made[expert], one.T if inputs_first else one)
    some = ExpertsTerm(rank, 3.0, inputs_first=inputs_first).delta(Factors(a, b), shape, slice(1, 3))
    torch.testing.assert_close(some, made[1:3])
