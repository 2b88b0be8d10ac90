"""Packed weights over ranks: each decodes its own rows or columns, which are those of the whole weight."""

from __future__ import annotations

import pytest
import torch

import shardload
from tests.dequantise.packed import folder_of
from tests.dequantise.test_gptq import packed, settings
from tests.distributed.spawn import run_ranks

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without torch.distributed"
)


def test_each_rank_decodes_its_part(tmp_path):
    tensors, _ = packed(order="shuffled")
    folder = folder_of(tmp_path / "packed", tensors, settings())
    stored = sum(ref.nbytes for ref in shardload.open_checkpoint(folder).tensors.values())
    ranks = run_ranks("tests.distributed.packed", 2, folder, timeout=120)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    for rank in ranks:
        assert len(rank.lines) == 6
        for line in rank.lines:
            assert line["equal"], line
            assert line["nbytes"] < 0.8 * stored
