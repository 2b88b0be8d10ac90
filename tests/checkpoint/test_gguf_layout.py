"""Layouts of llama.cpp against the operations of torch that its converter does, whole and by rows."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload.checkpoint.gguf_layout import laid_out
from shardload.keymap.derived import narrowed
from shardload.tensor_ref import Span, TensorRef
from tests.gguf_files import paired

HEADS = {"attention.head_count": 6, "attention.head_count_kv": 2}


def grouped(own):
    """Return [groups, q and k and v, size, width] as all of q, all of k, all of v."""
    return torch.cat([part.flatten(0, 2) for part in (own[:, :-2], own[:, -2:-1], own[:, -1:])])


@pytest.mark.parametrize(
    ("name", "layout", "shape", "stored"),
    [
        ("blk.0.attn_q.weight", "paired rows", (24, 5), lambda own: paired(own, 6)),
        ("blk.0.attn_k.bias", "paired rows", (8,), lambda own: paired(own, 2)),
        ("blk.0.attn_qkv.weight", "heads of q, k, v", (72, 5),
         lambda own: own.view(6, 3, 4, 5).transpose(0, 1).reshape(72, 5)),
        ("blk.0.attn_qkv.weight", "grouped heads", (40, 5), lambda own: grouped(own.view(2, 5, 4, 5))),
        ("blk.0.ffn_up.weight", "transposed", (7, 5), lambda own: own.t().contiguous()),
        ("blk.0.ffn_up.bias", "transposed", (7,), lambda own: own),
        ("blk.0.ssm_conv1d.weight", "middle dimension", (7, 1, 3), lambda own: own.squeeze(1)),
        ("blk.0.ffn_gate_inp_shexp.weight", "one row", (1, 5), lambda own: own.squeeze(0)),
        ("blk.0.ffn_gate_inp_shexp.weight", "one row", (1, 5), lambda own: own),
    ],
)  # fmt: skip
def test_a_layout_is_undone(name, layout, shape, stored):
    own = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.save({name: stored(own)}, "model.bin")
    checkpoint = shardload.open_checkpoint("model.bin")
    tensor = laid_out(checkpoint.tensors[name], name, layout, HEADS)
    assert torch.equal(checkpoint.read_derived(tensor), own)
    count = max(shape[0] - 3, 1)
    part = narrowed(tensor, 0, shape[0] - count, count)
    assert torch.equal(checkpoint.read_derived(part), own[shape[0] - count :])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("layout", "heads", "error"),
    [
        ("paired rows", None, shardload.UnsupportedError),
        ("paired rows", [], shardload.UnsupportedError),
        ("paired rows", 7, shardload.CorruptError),
        ("heads of q, k, v", 5, shardload.CorruptError),
        ("grouped heads", 5, shardload.CorruptError),
    ],
)
def test_rows_of_heads_are_not_left_as_they_lie(layout, heads, error):
    ref = TensorRef("blk.0.attn_q.weight", "F32", (24, 5), "m", Span(0, 480))
    with pytest.raises(error, match="attn_q") as caught:
        laid_out(ref, ref.name, layout, {"attention.head_count": heads} if heads is not None else {})
    assert caught.value.where.startswith("m: ")


def test_heads_may_differ_from_layer_to_layer():
    told = {"attention.head_count": [1, 2]}
    for layer, rows in ((0, 4), (1, 2)):
        ref = TensorRef(f"blk.{layer}.attn_q.weight", "F32", (8, 4), "m", Span(0, 128))
        made = laid_out(ref, ref.name, "paired rows", told)
        assert {part.shape for part in made.parts} == {(rows, 4)}
