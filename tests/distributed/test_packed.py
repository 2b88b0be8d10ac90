"""Packed weights over ranks: each decodes its own rows or columns, which are those of the whole weight."""

from __future__ import annotations

import pytest
import torch

import shardload
from tests.dequantise import test_awq, test_bitsandbytes, test_gptq
from tests.dequantise.packed import folder_of
from tests.dequantise.test_fp8 import BLOCKS, numbers
from tests.distributed.packed import SHAPES
from tests.distributed.spawn import run_ranks

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without torch.distributed"
)


def stored_in(folder):
    """Write a checkpoint of each scheme, and return their bytes."""
    fp8 = {"layer.weight": numbers(SHAPES["fp8"]), "layer.weight_scale_inv": torch.rand(2, 5) + 0.1}
    nf4, _ = test_bitsandbytes.plain_reading(SHAPES["nf4"])
    written = {
        "gptq": (test_gptq.packed(order="shuffled")[0], test_gptq.settings()),
        "awq": (test_awq.packed()[0], test_awq.SETTINGS),
        "fp8": (fp8, BLOCKS),
        "nf4": (nf4, test_bitsandbytes.SETTINGS),
    }
    return {
        scheme: shardload.open_checkpoint(folder_of(folder / scheme, *given)).nbytes
        for scheme, given in written.items()
    }


def test_each_rank_decodes_its_part(tmp_path):
    stored = stored_in(tmp_path)
    ranks = run_ranks("tests.distributed.packed", 2, tmp_path, timeout=120)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    for rank in ranks:
        assert len(rank.lines) == 10 * len(stored)
        for line in rank.lines:
            assert line["equal"], line
            if (line["scheme"], line["kind"]) != (
                "nf4",
                "columns",
            ):  # its blocks run on over rows: all are read
                assert line["nbytes"] < 0.8 * stored[line["scheme"]], line
