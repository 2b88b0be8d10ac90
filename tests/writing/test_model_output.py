"""model_output: the plan of a state dict, written and read back by the safetensors library."""

from __future__ import annotations

import pytest
import torch

from shardload import KeyMap, UnsupportedError, UsageError
from shardload.writing import write_output
from shardload.writing.model_output import model_output, tensor_output
from tests.writing.outputs import read


def written(tmp_path, state, key_map=None, limit=1 << 30):
    output = model_output(state, key_map or KeyMap(), limit, {})
    write_output(tmp_path / "out", output)
    found = {}
    for shard in output.shards:
        found |= read(tmp_path / "out" / shard.name)[0]
    return found


VIEWS = {
    "plain": torch.arange(6.0).view(2, 3),
    "turned": torch.arange(6.0).view(2, 3).t(),
    "part": torch.arange(10)[3:7],
    "step": torch.arange(10.0)[::3],
    "conj": torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64).conj(),
    "negative": torch.tensor([1 + 2j], dtype=torch.complex64).conj().imag,
    "expanded": torch.ones(1, 3).expand(4, 3),
    "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "empty": torch.empty(0, 2),
    "grad": torch.ones(2, requires_grad=True),
}


def test_a_view_is_written_as_what_it_shows(tmp_path):
    found = written(tmp_path, VIEWS)
    assert found.keys() == VIEWS.keys()
    for name, tensor in VIEWS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach().resolve_conj().resolve_neg()), name


def test_one_tensor_of_two_names_is_written_once_under_the_first():
    shared = torch.ones(2)
    output = model_output({"head": shared, "embed": shared, "copy": torch.ones(2)}, KeyMap(), 1 << 30, {})
    assert [tensor.name for shard in output.shards for tensor in shard.tensors] == ["copy", "head"]


def test_shards_are_filled_in_the_models_order_and_sorted_inside():
    state = {name: torch.zeros(2) for name in "dcba"}
    output = model_output(state, KeyMap(), 16, {"config.json": b"{}"})
    assert [[tensor.name for tensor in shard.tensors] for shard in output.shards] == [["c", "d"], ["a", "b"]]
    assert output.index is not None
    assert output.beside == {"config.json": b"{}"}


def test_a_map_is_undone_on_the_way_out(tmp_path):
    stored = {
        "qkv": torch.arange(12.0).view(6, 2),
        "old": torch.ones(1),
        "e.0": torch.ones(2),
        "e.1": torch.zeros(2),
    }
    key_map = KeyMap().split("qkv", ["q", "k"], [4, 2]).rename("old", "new").stack("e.{n}", "e", count=2)
    model = {
        "q": stored["qkv"][:4],
        "k": stored["qkv"][4:],
        "new": stored["old"],
        "e": torch.stack([stored["e.0"], stored["e.1"]]),
    }
    found = written(tmp_path, model, key_map)
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())


def test_padding_that_was_trained_is_a_loss_and_untouched_padding_is_none(tmp_path):
    key_map = KeyMap().pad_rows("w", 4, 0, of=2)
    state = {"w": torch.tensor([1.0, 2.0, 0.0, 0.0])}
    assert written(tmp_path, state, key_map)["w"].tolist() == [1, 2]
    state["w"][3] = 7
    with pytest.raises(UsageError, match="does not lead back to 'w'") as caught:
        model_output(state, key_map, 1 << 30, {})
    assert "1 of the model's 1 tensors would be lost" in caught.value.where


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.empty(2, device="meta"), UsageError, "on meta"),
        (7, UnsupportedError, "is a int, not a tensor"),
        (torch.eye(2).to_sparse(), UnsupportedError, "no place for w"),
        (torch.nn.parameter.UninitializedParameter(), UsageError, "w has no shape"),
        (torch.ones(1, dtype=torch.complex128), UnsupportedError, "complex128"),
    ],
)
def test_what_safetensors_can_not_hold_is_named(value, error, message):
    with pytest.raises(error, match=message):
        model_output({"w": value}, KeyMap(), 1 << 30, {})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_named():
    rows = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    with pytest.raises(UnsupportedError, match="w is a nested tensor"):
        model_output({"w": rows}, KeyMap(), 1 << 30, {})


def test_a_large_tensor_follows_in_blocks_of_whole_rows(monkeypatch):
    monkeypatch.setattr("shardload.writing.blocks._BLOCK", 64)
    turned = torch.arange(60.0).view(6, 10).t()
    tensor = tensor_output("w", turned)
    blocks = list(tensor.content())
    assert [tuple(block.shape) for block in blocks] == [(2, 6)] * 5
    assert torch.equal(torch.cat(blocks), turned)
    assert all(block.is_contiguous() for block in blocks)
