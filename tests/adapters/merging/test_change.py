"""Blocks of rows."""

from __future__ import annotations

import pytest

from shardload.adapters.merging import change as change_module


@pytest.mark.parametrize("block", [1, 100, 4000, 1 << 20])
@pytest.mark.parametrize("shape", [(1,), (7,), (0, 3), (33, 5), (1000, 1), (4097, 3), (2, 5000), (64, 2, 2)])
def test_blocks_cover_a_tensor_once(shape, block, monkeypatch):
    monkeypatch.setattr(change_module, "BLOCK", block)
    blocks = list(change_module.row_blocks(shape))
    assert [row for rows in blocks for row in range(shape[0])[rows]] == list(range(shape[0]))
    sizes = [rows.stop - rows.start for rows in blocks]
    assert all(size > 0 for size in sizes)
    if len(sizes) > 1:
        assert min(sizes[:-1]) >= max(sizes) / 2
        assert sizes[-1] * 2 >= max(sizes) or max(sizes) <= 16
