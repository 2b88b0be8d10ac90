"""AWQ: words of eight outputs in their own order, against a plain reading."""

from __future__ import annotations

import pytest
import torch

import shardload
from tests.dequantise.packed import folder_of, holds, words

ROWS, COLUMNS, GROUP = 64, 96, 32
SETTINGS = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}


def packed(scales=torch.float16):
    generator = torch.Generator().manual_seed(1)
    groups = COLUMNS // GROUP
    numbers = torch.randint(0, 16, (COLUMNS, ROWS), generator=generator)
    zeros = torch.randint(0, 16, (groups, ROWS), generator=generator)
    scale = (torch.rand(groups, ROWS, generator=generator) + 0.01).to(scales)
    order = [8 * (row // 8) + (0, 2, 4, 6, 1, 3, 5, 7)[row % 8] for row in range(ROWS)]
    index = torch.arange(COLUMNS) // GROUP
    tensors = {
        "layer.qweight": words(numbers[:, order], 4, 1),
        "layer.qzeros": words(zeros[:, order], 4, 1),
        "layer.scales": scale,
    }
    return tensors, ((numbers - zeros[index]) * scale[index]).t().contiguous()


@pytest.mark.parametrize("scales", [torch.float16, torch.bfloat16])
def test_numbers_are_those_of_a_plain_reading(tmp_path, scales):
    tensors, wanted = packed(scales)
    holds(folder_of(tmp_path / "packed", tensors, SETTINGS), wanted)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["layer.scales"].__setitem__((1, 3), float("nan")), "layer.scales"),
        (lambda t: t.__setitem__("layer.qzeros", t["layer.qzeros"][:-1]), "layer.qzeros"),
        (lambda t: t.__setitem__("layer.scales", t["layer.scales"][:, :-1]), "layer.scales"),
        (lambda t: t.pop("layer.qzeros"), "layer.qzeros"),
    ],
)
def test_changed_parts_are_refused_by_name(tmp_path, change, named):
    tensors, _ = packed()
    change(tensors)
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, SETTINGS))
    with pytest.raises(shardload.CorruptError) as caught:
        dict(shardload.dequantised(checkpoint, "bfloat16").items())
    assert named in caught.value.what
    assert "model.safetensors" in caught.value.where


def test_another_version_is_declined_by_name(tmp_path):
    tensors, _ = packed()
    folder = folder_of(tmp_path / "packed", tensors, {**SETTINGS, "version": "gemv"})
    with pytest.raises(shardload.UnsupportedError, match="gemv"):
        shardload.dequantised(shardload.open_checkpoint(folder), "bfloat16")
