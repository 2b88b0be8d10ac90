"""Weights that a class keeps in float32 while the rest is loaded in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    OnDevice,
    attach_lora,
    build_shell,
    fill,
    from_pretrained,
    merge,
    open_checkpoint,
    plan_load,
    report_of,
    save,
    save_adapter,
)
from shardload.model.kept_float32 import kept_in_float32
from shardload.transformers_shim.configuration_utils import PretrainedConfig
from shardload.transformers_shim.modeling_utils import PreTrainedModel
from tests.tiny import write_checkpoint

HALF = [torch.float16, torch.bfloat16]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wi = nn.Linear(8, 8)
        self.wo = nn.Linear(8, 8)
        self.word = nn.LayerNorm(8)
        self.word.register_buffer("running_mean", torch.ones(8))


class Keeping(nn.Module):
    _keep_in_fp32_modules = ("wo",)
    _keep_in_fp32_modules_strict = ("word.running_mean",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])


class Wrapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Keeping()
        self.wo = nn.Linear(8, 8)


class Overruled(Wrapping):
    _keep_in_fp32_modules = None


def in_float32(model: nn.Module) -> set[str]:
    state = model.state_dict()
    return {name.removeprefix("inner.") for name in state if state[name].dtype == torch.float32}


LOOSE = {f"layers.{n}.wo.{part}" for n in (0, 1) for part in ("weight", "bias")}
STRICT = {f"layers.{n}.word.running_mean" for n in (0, 1)}
EXPECTED = {torch.float16: LOOSE | STRICT, torch.bfloat16: STRICT}


@pytest.mark.parametrize("make", [Keeping, Wrapping])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("stored", [torch.float32, *HALF], ids=str)
def test_what_the_class_keeps_is_in_float32_and_holds_the_stored_values(tmp_path, make, dtype, stored):
    torch.manual_seed(0)
    source = make().to(stored)
    save(source, tmp_path)
    model = from_pretrained(tmp_path, model_class=lambda _config: make(), dtype=dtype)
    assert in_float32(model) == EXPECTED[dtype]
    for name, tensor in source.state_dict().items():
        found = model.state_dict()[name]
        if tensor.dtype.is_floating_point:
            assert torch.equal(found, tensor.to(found.dtype)), name
    notes = " ".join(report_of(model).notes)
    assert "word.running_mean: in float32, where the class keeps it" in notes
    assert ("wo.weight: in float32" in notes) == (dtype == torch.float16)


def test_a_module_above_decides_when_it_has_a_list_of_its_own(tmp_path):
    save(Overruled(), tmp_path)
    model = from_pretrained(tmp_path, model_class=lambda _config: Overruled(), dtype="float16")
    assert in_float32(model) == set()


def test_a_checkpoint_in_half_is_loaded_as_the_class_keeps_it(tmp_path):
    """Where no dtype is asked for, it is the one of most stored bytes."""
    save(Keeping().half(), tmp_path)
    assert (
        in_float32(from_pretrained(tmp_path, model_class=lambda _config: Keeping()))
        == EXPECTED[torch.float16]
    )
    shell = build_shell(Keeping)
    fill(shell, open_checkpoint(tmp_path))
    assert in_float32(shell.model) == EXPECTED[torch.float16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_kept_beside_a_wide_dtype(tmp_path, dtype):
    save(Keeping(), tmp_path)
    model = from_pretrained(tmp_path, model_class=lambda _config: Keeping(), dtype=dtype)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert kept_in_float32([("", Keeping())], ["wo.weight"], dtype) == []


def test_missing_weights_that_the_class_keeps_are_made_in_float32(tmp_path):
    state = {
        name: tensor for name, tensor in Keeping().state_dict().items() if not name.startswith("layers.1.wo.")
    }
    write_checkpoint(tmp_path, state, shards=1)
    model = from_pretrained(
        tmp_path, model_class=lambda _config: Keeping(), dtype="float16", allow_missing=["layers.1.wo.*"]
    )
    assert in_float32(model) == EXPECTED[torch.float16]


def test_the_statement_counts_what_is_kept(tmp_path):
    save(Keeping(), tmp_path)
    shell = build_shell(Keeping)
    report = fill(shell, open_checkpoint(tmp_path), target=OnDevice(dtype=torch.float16))
    state = shell.model.state_dict().values()
    half = sum(tensor.nbytes for tensor in state if tensor.dtype == torch.float16)
    kept = sum(tensor.nbytes for tensor in state if tensor.dtype != torch.float16)
    assert report.stated.anonymous == half
    assert report.stated.mapped == kept
    held = plan_load(tmp_path, dtype="float16", shell=build_shell(Keeping)).held
    assert (held.anon, held.file) == (half, kept)
    fill(shell, open_checkpoint(tmp_path), target=OnDevice(dtype=torch.bfloat16))
    assert in_float32(shell.model) == EXPECTED[torch.bfloat16]


def test_a_delta_that_is_merged_while_loading_is_added_in_float32(tmp_path):
    torch.manual_seed(0)
    source = Keeping()
    save(source, tmp_path / "base")
    attach_lora(source, r=2, targets=["layers.0.wo", "layers.0.wi"], init=False, seed=0)
    save_adapter(source, tmp_path / "lora")
    merge(source, keep_copies=True)
    model = from_pretrained(
        tmp_path / "base",
        model_class=lambda _config: Keeping(),
        dtype="float16",
        adapter=tmp_path / "lora",
        merge=True,
    )
    assert in_float32(model) == EXPECTED[torch.float16]
    assert torch.equal(model.layers[0].wo.weight, source.layers[0].wo.weight)
    assert torch.equal(model.layers[0].wi.weight, source.layers[0].wi.weight.half())


class Remote(PreTrainedModel):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__(PretrainedConfig())
        self.parts = nn.ModuleList(parts)
        for number, part in enumerate(parts):
            self.add_module(f"part{number}", part)
        self.post_init()


class Inner(PreTrainedModel):
    _keep_in_fp32_modules = ["wo"]  # noqa: RUF012 - as published code writes it

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.wo = nn.Linear(2, 2)
        self.word = nn.Linear(2, 2)
        self.post_init()


def test_a_model_of_the_stand_in_knows_what_its_parts_keep():
    model = Remote([Inner(), nn.Linear(2, 2)])
    names = list(model.state_dict())
    modules = [("", model)]
    assert {name.rpartition(".wo.")[0] for name in kept_in_float32(modules, names, torch.float16)} == {
        "parts.0",
        "part0",
    }
    assert kept_in_float32(modules, names, torch.bfloat16) == []
    model._keep_in_fp32_modules = None
    assert kept_in_float32(modules, names, torch.float16) == []
