"""Rows of tokens: of an embedding that has them, and of no other layer."""

from __future__ import annotations

import pytest
import torch

from shardload.adapters import load_adapter
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
