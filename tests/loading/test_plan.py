"""The plan's decision for each entry of a checkpoint, and the differences that are allowed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from shardload import (
    MismatchError,
    OnDevice,
    UnsupportedError,
    UsageError,
    build_shell,
    fill,
    open_checkpoint,
)
from shardload.loading.plan import match
from tests.tiny import Net, assert_same_state, meta_names, random_state, write_checkpoint


def test_a_stored_value_for_a_plain_attribute_is_never_passed_over(tmp_path):
    """The class forgot to register a buffer: torch's strict load calls its key unexpected."""

    class Forgotten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.scale = torch.ones(3)
            self.inv_freq = torch.ones(3)

    state = {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2), "inv_freq": torch.ones(3)}
    fill(build_shell(Forgotten), open_checkpoint(write_checkpoint(tmp_path / "a", state)))
    state["scale"] = torch.full((3,), 7.0)
    with pytest.raises(MismatchError, match="plain attribute"):
        fill(build_shell(Forgotten), open_checkpoint(write_checkpoint(tmp_path / "b", state)))


def test_an_entry_that_is_no_tensor_is_never_dropped(tmp_path):
    torch.save({**random_state(Net()), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MismatchError, match="epoch  - an entry of type int"):
        fill(build_shell(Net), open_checkpoint(tmp_path))
    fill(build_shell(Net), open_checkpoint(tmp_path), allow_unexpected=["epoch"])


def test_a_stored_copy_of_a_computed_buffer_is_a_note(tmp_path):
    state = {**random_state(Net()), "layers.0.scale": torch.zeros(1)}
    shell = build_shell(Net)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert float(shell.model.layers[0].scale) == 0.5
    assert any("layers.0.scale: a stored copy" in note for note in report.notes)


def test_keys_that_the_class_declares_are_lines_and_not_faults(tmp_path):
    class Declaring(Net):
        _keys_to_ignore_on_load_missing = (r"head\.bias",)
        _keys_to_ignore_on_load_unexpected = (r"rotary_emb\.inv_freq",)

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 12)

    state = {**random_state(Net()), "layers.0.rotary_emb.inv_freq": torch.zeros(4)}
    shell = build_shell(Declaring)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    text = str(report)
    assert "missing: head.bias (by the class's _keys_to_ignore_on_load_missing)" in text
    assert "unexpected: layers.0.rotary_emb.inv_freq (by the class's" in text
    assert meta_names(shell.model) == []


class Numbers(nn.Module):
    def __init__(self, dtype: torch.dtype, length: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, dtype=dtype))


@pytest.mark.parametrize(
    ("model", "stored", "says"),
    [
        (torch.float32, torch.int32, "packed or quantised"),
        (torch.complex64, torch.int32, "packed or quantised"),
        (torch.float32, torch.bool, "packed or quantised"),
        (torch.float32, torch.complex64, "the model holds real numbers"),
    ],
)
def test_numbers_of_another_kind_are_refused(tmp_path, model, stored, says):
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path, {"weight": torch.ones(2).to(stored)}, kind="bin", shards=1)
    )
    with pytest.raises(MismatchError, match=says):
        fill(build_shell(lambda: Numbers(model)), checkpoint)


def test_a_real_number_for_a_complex_one_is_taken_as_torch_takes_it(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"weight": torch.ones(2)}, shards=1))
    shell = build_shell(lambda: Numbers(torch.complex64))
    fill(shell, checkpoint)
    oracle = Numbers(torch.complex64)
    oracle.load_state_dict({"weight": torch.ones(2)})
    assert shell.model.weight.dtype == oracle.weight.dtype


class OwnLoader(Numbers):
    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)


@pytest.mark.parametrize("make", [Numbers, OwnLoader])
def test_a_dtype_that_torch_lacks_is_refused_before_the_load(tmp_path, make):
    """Six-bit floats have a code in the format, but no dtype in torch."""
    header = json.dumps({"weight": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises((MismatchError, UnsupportedError), match="no dtype for|torch has no dtype"):
        fill(build_shell(lambda: make(torch.float32, 4)), checkpoint)


def test_a_checkpoint_of_computed_buffers_alone_loads_nothing_and_says_so(tmp_path):
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(2), persistent=False)

    shell = build_shell(Computed)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, {"table": torch.zeros(2)}, shards=1)))
    assert report.loaded == 0
    assert "table: a stored copy" in str(report)
    assert torch.equal(shell.model.table, torch.ones(2))


def test_what_a_class_declares_as_one_text_is_one_pattern(tmp_path):
    """If each letter were a pattern, nearly every missing key would be allowed."""

    class Declaring(Net):
        _keys_to_ignore_on_load_missing = "head.bias"

    state = random_state(Net())
    del state["embed.weight"]
    with pytest.raises(MismatchError, match=r"embed\.weight"):
        fill(build_shell(Declaring), open_checkpoint(write_checkpoint(tmp_path, state)))
    Declaring._keys_to_ignore_on_load_missing = ["("]
    with pytest.raises(UsageError, match="no regular expression"):
        fill(build_shell(Declaring), open_checkpoint(tmp_path))


def test_a_scalar_that_is_stored_with_one_dimension_is_taken(tmp_path):
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.0))

    shell = build_shell(Scalar)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, {"weight": torch.full((1,), 4.0)}, shards=1)))
    assert shell.model.weight.shape == ()
    assert float(shell.model.weight.detach()) == 4.0


def test_parameters_that_were_saved_as_such_are_tensors(tmp_path):
    model = Net()
    torch.save({**dict(model.named_parameters()), **dict(model.named_buffers())}, tmp_path / "weights.bin")
    shell = build_shell(Net)
    # The checkpoint also holds the computed buffers: the report has a note for each.
    report = fill(shell, open_checkpoint(tmp_path))
    assert any("layers.{0-2}.scale: a stored copy" in note for note in report.notes)
    assert_same_state(shell.model, model)


def test_a_plan_pairs_by_name_and_shape_and_reads_what_it_pairs(tmp_path):
    shell = build_shell(lambda: nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 2, bias=False)}))
    state = {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(4), "extra": torch.ones(1)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=1))
    plan = match(shell, shell.tree, checkpoint, None, OnDevice())
    assert dict(plan.tensors) == plan.direct == {"a.weight": checkpoint.tensors["a.weight"]}
    assert sorted((fault.kind, fault.key) for fault in plan.faults) == [
        ("misshapen", "a.bias"), ("missing", "b.weight"), ("unexpected", "extra")
    ]  # fmt: skip
