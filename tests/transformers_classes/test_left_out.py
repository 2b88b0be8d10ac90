"""What classes leave out of their checkpoints, as `save_pretrained` does."""

from __future__ import annotations

import pytest
import torch

import shardload

transformers = pytest.importorskip("transformers")

TABLES = {"model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"}


def marian():
    torch.manual_seed(0)
    sizes = {
        "d_model": 16, "vocab_size": 40, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32,
        "pad_token_id": 39, "decoder_start_token_id": 39,
    }  # fmt: skip
    return transformers.MarianMTModel(transformers.MarianConfig(**sizes)).eval()


def test_tables_that_the_class_computes_are_not_written(tmp_path):
    model = marian()
    assert model.state_dict().keys() >= TABLES
    model.save_pretrained(tmp_path / "theirs")
    shardload.save(model, tmp_path / "ours")
    ours, theirs = (set(shardload.open_checkpoint(tmp_path / name).tensors) for name in ("ours", "theirs"))
    assert ours == theirs
    assert not TABLES & ours
    again = shardload.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_a_name_that_no_load_may_lack_is_written(tmp_path):
    model = marian()
    model._keys_to_ignore_on_save = {*TABLES, "model.encoder.layers.0.fc1.weight"}
    shardload.save(model, tmp_path / "ours")
    stored = set(shardload.open_checkpoint(tmp_path / "ours").tensors)
    assert "model.encoder.layers.0.fc1.weight" in stored
    assert not TABLES & stored


def test_a_part_of_a_callers_model_is_written_whole(tmp_path):
    """Nothing but the class of a whole model says what a load of it may lack."""
    model = torch.nn.Sequential(marian(), torch.nn.Linear(2, 2))
    shardload.save(model, tmp_path / "ours")
    assert set(shardload.open_checkpoint(tmp_path / "ours").tensors) >= {f"0.{name}" for name in TABLES}
