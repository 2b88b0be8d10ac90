"""Rows of tokens: of an embedding that has them, and of no other layer."""

from __future__ import annotations

import pytest
import torch

from shardload.adapters import load_adapter
from shardload.adapters.layers.rows import RowsTerm
from shardload.adapters.layers.term import Factors
from shardload.errors import (
    ShardloadError,
    UnsupportedError,
)
from tests.adapters.tiny import (
    PREFIX,
    Tiny,
    assert_unchanged,
    config,
    lora_tensors,
    snapshot,
    write,
)


def test_rows_of_tokens_that_the_base_has_not(tmp_path):
    tensors = lora_tensors(Tiny()) | {f"{PREFIX}embed.token_adapter.trainable_tokens_delta": torch.ones(2, 8)}
    with pytest.raises(ShardloadError, match="has 11 rows"):
        load_adapter(Tiny(), write(tmp_path, tensors, config(trainable_token_indices=[1, 400])))


def test_rows_of_a_layer_that_has_no_rows_of_tokens(tmp_path):
    key = f"{PREFIX}layers.0.norm.token_adapter.trainable_tokens_delta"
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.norm is a LayerNorm"):
        load_adapter(
            model, write(tmp_path, {key: torch.ones(2, 8)}, config(trainable_token_indices={"norm": [1, 4]}))
        )
    assert_unchanged(model, before)


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("rows", [None, slice(0, 3), slice(2, 6), slice(3, 4)])
def test_the_rows_of_these_tokens_are_replaced_and_no_others(rows, weight):
    base, new = torch.randn(7, 4).double(), torch.randn(3, 4).double()
    whole = base.clone()
    for row, token in zip(new, (5, 0, 2), strict=True):
        whole[token] += weight * (row - whole[token])
    term = RowsTerm(0, 1.0, tokens=(5, 0, 2))
    part = slice(None) if rows is None else rows
    made = term.changed(base[part], Factors(new, new.new_empty(0)), weight, rows, (7, 4))
    torch.testing.assert_close(made, whole[part])
    assert list(term.stored(Factors(new, new.new_empty(0)))[1]) == ["token_adapter.trainable_tokens_delta"]
