"""Numbers of one kind for slots of another: torch's own load_state_dict is the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import KeyMap, MismatchError, OnDevice, build_shell, fill, open_checkpoint
from shardload.placement.whole_numbers import as_whole_numbers
from tests.tiny import write_checkpoint

SLOTS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64]
STORED = [*SLOTS[:-1], torch.float32, torch.float16, torch.bfloat16, torch.float64]


class Counting(nn.Module):
    def __init__(self, dtype: torch.dtype, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        if kind == "buffer":
            self.register_buffer("count", torch.zeros(2, dtype=dtype))
        else:
            self.count = nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)


class OwnLoader(Counting):
    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)


def state_of(stored: torch.dtype) -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(3), "count": torch.tensor([1, 0]).to(stored)}


@pytest.mark.parametrize("target", [None, torch.float16], ids=["as stored", "in half"])
@pytest.mark.parametrize("kind", ["buffer", "parameter"])
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("slot", SLOTS, ids=str)
def test_the_slot_has_the_dtype_and_the_values_that_torch_gives_it(tmp_path, slot, stored, kind, target):
    if slot.is_complex and not stored.is_floating_point:
        pytest.skip("integers for a weight are refused: they may be packed")
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state_of(stored), shards=1))
    oracle = Counting(slot, kind)
    oracle.load_state_dict(state_of(stored))
    for make in (Counting, OwnLoader):
        for model in (build_shell(lambda make=make: make(slot, kind)), make(slot, kind)):
            fill(model, checkpoint, target=OnDevice(dtype=target))
            found = getattr(model, "model", model).count
            assert found.dtype == oracle.count.dtype
            assert torch.equal(found, oracle.count)
            assert type(found) is type(oracle.count)


@pytest.mark.parametrize(
    ("slot", "stored"),
    [
        (torch.int64, torch.tensor([0.5, 1.0])),
        (torch.int64, torch.tensor([float("nan"), 1.0])),
        (torch.int64, torch.tensor([1e30, 1.0])),
        (torch.bool, torch.tensor([0.5, 1.0])),
        (torch.bool, torch.tensor([2, 1])),
        (torch.uint8, torch.tensor([300, 1])),
        (torch.int32, torch.tensor([2**40, 1])),
    ],
)
@pytest.mark.parametrize("copy", [False, True])
def test_a_value_that_the_slot_cannot_hold_stops_the_load(tmp_path, slot, stored, copy):
    state = {"weight": torch.ones(3), "count": stored}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=1))
    model = Counting(slot, "buffer")
    before = dict(model.state_dict(keep_vars=True))
    with pytest.raises(MismatchError, match="can't hold") as caught:
        fill(model, checkpoint, copy=copy)
    assert caught.value.where == "count"
    assert all(model.state_dict(keep_vars=True)[name] is tensor for name, tensor in before.items())
    fill(model, checkpoint, **caught.value.cure.keywords)
    assert model.count.tolist() == [0, 0]
    assert model.weight.tolist() == [1, 1, 1]


def test_a_large_tensor_is_cast_in_pieces_and_judged_to_its_end():
    numbers = torch.arange(2**20 + 5, dtype=torch.float32)
    assert torch.equal(as_whole_numbers("ids", numbers, torch.int32), numbers.to(torch.int32))
    numbers[-1] = 0.5
    with pytest.raises(MismatchError):
        as_whole_numbers("ids", numbers, torch.int32)


def test_a_cast_is_in_the_statement(tmp_path):
    state = {"weight": torch.ones(3), "count": torch.ones(1000)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=1))
    shell = build_shell(nn.Module)
    shell.model.weight = nn.Parameter(torch.empty(3, device="meta"))
    shell.model.register_buffer("count", torch.zeros(1000, dtype=torch.int64))
    report = fill(shell, checkpoint)
    assert report.stated.anonymous == 8000
    assert report.stated.mapped == 12


@pytest.mark.parametrize("copy", [False, True])
def test_the_count_of_a_batch_norm_that_was_stored_as_a_float(tmp_path, copy):
    """Its module loads itself; another tool has cast the whole state dict to half before it saved it."""
    state = {name: tensor.half() for name, tensor in nn.BatchNorm1d(3).state_dict().items()}
    state["num_batches_tracked"] += 5
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "whole", state, shards=1))
    for model in (build_shell(lambda: nn.BatchNorm1d(3)), nn.BatchNorm1d(3)):
        fill(model, checkpoint, copy=copy)
        count = getattr(model, "model", model).num_batches_tracked
        assert (count.dtype, int(count)) == (torch.int64, 5)
    state["num_batches_tracked"] += 0.5
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "half", state, shards=1))
    model = nn.BatchNorm1d(3)
    before = model.num_batches_tracked
    with pytest.raises(MismatchError, match="can't hold"):
        fill(model, checkpoint, copy=copy)
    assert model.num_batches_tracked is before


def test_whole_numbers_that_a_key_map_joins_get_the_dtype_of_their_slot(tmp_path):
    state = {"weight": torch.ones(3), "a": torch.tensor([1.0]), "b": torch.tensor([0.0])}
    rules = KeyMap().cat(["a", "b"], "count")
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=1))
    model = Counting(torch.int64, "buffer")
    fill(model, checkpoint, key_map=rules)
    assert (model.count.dtype, model.count.tolist()) == (torch.int64, [1, 0])
