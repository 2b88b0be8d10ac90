"""Blocks by the names of tensors alone."""

from __future__ import annotations

from shardload.placement.named_blocks import blocks_by_name, parts_by_name


def test_blocks_by_name_run_by_their_numbers_between_embeddings_and_the_rest():
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", "scale"]
    names += [f"model.layers.{n}.mlp.{m}.weight" for n in (10, 2, 0) for m in (1, 0)]
    assert list(blocks_by_name(names)) == [
        "model.embed_tokens", "model.layers.0", "model.layers.2", "model.layers.10", "lm_head", "model.norm", "scale",
    ]  # fmt: skip


def test_parts_have_the_bytes_of_their_tensors():
    parts = parts_by_name({"b.1.x": 3, "b.0.y": 4, "b.0.x": 5, "z": 6})
    assert [(part.names, part.nbytes) for part in parts] == [(("b.0",), 9), (("b.1",), 3), (("z",), 6)]
