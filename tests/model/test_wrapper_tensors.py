"""Models with tensors of other classes, or inside DDP or FSDP: nothing is loaded, attached, merged or saved wrongly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from shardload import (
    OnDevice,
    UnsupportedError,
    attach_lora,
    build_shell,
    check,
    fill,
    load_adapter,
    merge,
    open_checkpoint,
    save,
    save_adapter,
    swap_adapter,
)
from shardload.model.wrapper_tensors import is_wrapper, named, refuse_sharded
from tests.tiny import meta_names

ROOT = Path(__file__).parents[2]


class Halves(torch.Tensor):
    """A tensor whose values lie in another one, at half their size."""

    @staticmethod
    def __new__(cls, inside: torch.Tensor, requires_grad: bool = False):
        return torch.Tensor._make_wrapper_subclass(
            cls, inside.shape, dtype=inside.dtype, device=inside.device, requires_grad=requires_grad
        )

    def __init__(self, inside: torch.Tensor, requires_grad: bool = False) -> None:
        self.inside = inside

    def __tensor_flatten__(self):
        return ["inside"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def plain(value):
            return value.inside * 2 if isinstance(value, Halves) else value

        if func is torch.ops.aten.detach.default:
            return Halves(args[0].inside)
        return func(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})


class OwnParameter(nn.Parameter):
    """A parameter with a class of its own, and values of its own."""


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))


def wrapped() -> nn.Sequential:
    model = make().requires_grad_(False)
    model[0]._parameters["weight"] = Halves(model[0].weight.detach() / 2)
    return model


def buffered() -> nn.Sequential:
    model = make()
    model.register_buffer("scale", Halves(torch.ones(2)))
    return model


def own_class() -> nn.Sequential:
    model = make()
    model[0].weight = OwnParameter(model[0].weight.detach())
    return model


def mirrored(name: str) -> nn.Sequential:
    kind = type(name, (nn.Module,), {})
    model = make()
    model.add_module("inner", kind())
    return model


@pytest.fixture
def checkpoint(tmp_path):
    save(make(), tmp_path / "base")
    return open_checkpoint(tmp_path / "base")


MODELS = {
    "a wrapper": (wrapped, "0.weight is a Halves"),
    "a wrapper as a buffer": (buffered, "scale is a Halves"),
    "a parameter of another class": (own_class, "0.weight is a OwnParameter"),
    "DDP": (lambda: mirrored("DistributedDataParallel"), "DistributedDataParallel"),
    "FSDP": (lambda: mirrored("FullyShardedDataParallel"), "FullyShardedDataParallel"),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("target", [None, torch.float16])
def test_a_load_is_refused_by_name_before_anything_is_touched(checkpoint, kind, target):
    build, says = MODELS[kind]
    model = build()
    before = dict(model.state_dict(keep_vars=True))
    for operation in (
        lambda: fill(model, checkpoint, target=OnDevice(dtype=target), strict=False),
        lambda: check(model, checkpoint),
    ):
        with pytest.raises(UnsupportedError) as caught:
            operation()
        assert says in caught.value.where
        assert all(model.state_dict(keep_vars=True)[name] is tensor for name, tensor in before.items())


def test_a_target_that_assigns_is_asked_to(checkpoint):
    class Assigning(OnDevice):
        def put(self, module, name, tensor):
            module._parameters[name] = Halves(tensor / 2) if name == "weight" else nn.Parameter(tensor)

    model = wrapped()
    fill(model, checkpoint, target=Assigning())
    assert type(model[0].weight) is Halves
    assert torch.equal(model[0].weight.inside * 2, make()[0].weight)


def test_wrappers_are_told_from_plain_subclasses():
    assert is_wrapper(Halves(torch.ones(2)))
    assert not any(map(is_wrapper, (torch.ones(2), nn.Parameter(torch.ones(2)), OwnParameter(torch.ones(2)))))
    tensors = [(f"w{n}", Halves(torch.ones(1))) for n in range(6)]
    assert named(tensors, 2) == "w0 is a Halves, w1 is a Halves and 4 more"


def test_a_wrapper_is_neither_merged_nor_saved_and_an_adapter_beside_it_is_saved(tmp_path):
    model, x = wrapped(), torch.ones(2, 4)
    attach_lora(model, r=2, targets=["0"], init=False, seed=0)
    before = model(x)
    with pytest.raises(UnsupportedError) as caught:
        merge(model)
    assert "0 has a Halves as its weight" in caught.value.where
    assert torch.equal(model(x), before)
    with (
        pytest.raises(UnsupportedError, match="wraps other tensors"),
        pytest.warns(UserWarning, match="adapters are not saved"),
    ):
        save(model, tmp_path / "whole")
    save_adapter(model, tmp_path / "lora")
    again = wrapped()
    load_adapter(again, tmp_path / "lora")
    assert torch.equal(again(x), before)


def test_an_adapter_of_wrappers_is_neither_merged_nor_saved(tmp_path):
    model = make()
    attach_lora(model, r=2, targets=["0"])
    factor = model[0].lora_A["default"]
    factor._parameters["weight"] = Halves(factor.weight.detach() / 2)
    with pytest.raises(UnsupportedError) as caught:
        save_adapter(model, tmp_path / "lora")
    assert "lora_A.weight is a Halves" in caught.value.where
    before = model[0].weight.clone()
    with pytest.raises(UnsupportedError, match="can't be merged") as caught:
        merge(model, keep_copies=True)
    assert "0 has a Halves in its adapter" in caught.value.where
    assert torch.equal(model[0].weight, before)
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("name", ["DistributedDataParallel", "FullyShardedDataParallel"])
def test_an_adapter_comes_before_the_mirror(name):
    model = mirrored(name)
    with pytest.raises(UnsupportedError, match="attaching an adapter"):
        attach_lora(model, r=2, targets=["0"])
    assert not any("lora" in key for key, _ in model.named_parameters())
    refuse_sharded(make(), "attaching")


def test_an_adapter_is_not_swapped_inside_a_mirror(tmp_path):
    model = make()
    attach_lora(model, r=2, targets=["0"])
    save_adapter(model, tmp_path / "lora")
    model.add_module("inner", type("DistributedDataParallel", (nn.Module,), {})())
    own = model[0].lora_A["default"].weight
    with pytest.raises(UnsupportedError, match="swapping an adapter"):
        swap_adapter(model, "default", tmp_path / "lora")
    assert model[0].lora_A["default"].weight is own


# --- adapters on a model that is filled ------------------------------------------------------------------------


def test_a_shell_with_an_adapter_is_filled_and_the_adapter_stays(checkpoint):
    shell = build_shell(make)
    attach_lora(shell.model, r=2, targets=["0", "1"], init=False, seed=0)
    own = {name: tensor for name, tensor in shell.model.named_parameters() if "lora" in name}
    report = fill(shell, checkpoint)
    assert report.loaded == 4
    assert meta_names(shell.model) == []
    assert all(dict(shell.model.named_parameters())[name] is tensor for name, tensor in own.items())
    other = make()
    fill(other, checkpoint)
    attach_lora(other, r=2, targets=["0", "1"], init=False, seed=0)
    x = torch.ones(2, 4)
    assert torch.equal(shell.model(x), other(x))


def test_a_checkpoint_that_holds_the_adapter_fills_it_too(tmp_path):
    source = make()
    attach_lora(source, r=2, targets=["0"], init=False, seed=0)
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    model = make()
    attach_lora(model, r=2, targets=["0"])
    fill(model, open_checkpoint(tmp_path))
    assert torch.equal(model[0].lora_B["default"].weight, source[0].lora_B["default"].weight)


# --- real processes --------------------------------------------------------------------------------------------

PROCESSES = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
import shardload

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))

def refused(operation):
    try:
        operation()
    except shardload.UnsupportedError as error:
        return "DTensor" in f"{error} {error.where}"

def main(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    base = shardload.open_checkpoint(folder + "/base")
    for shard in (lambda m: parallelize_module(m, mesh, {"0": ColwiseParallel()}), lambda m: fully_shard(m, mesh=mesh)):
        shell = shardload.build_shell(make)
        shard(shell.model)
        assert refused(lambda: shardload.attach_lora(shell.model, r=2, targets=["0"]))
    model = make()
    notes = shardload.fill(model, base).notes
    assert any("shardload.data_parallel(model)" in note for note in notes), notes
    shardload.attach_lora(model, r=2, alpha=4, targets=["0", "1"])
    fully_shard(model, mesh=mesh)
    assert refused(lambda: shardload.merge(model, keep_copies=True))
    model(torch.full((2, 8), float(rank + 1))).sum().backward()
    for module in model.modules():
        for name, p in module._parameters.items():
            if isinstance(p, DTensor):
                module._parameters[name] = nn.Parameter(p.full_tensor())
    shardload.save_adapter(model, f"{folder}/lora{rank}")
    dist.barrier()
    dist.destroy_process_group()

main(int(sys.argv[1]), 2, sys.argv[2])
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_sharded_models_are_refused_on_every_rank(tmp_path):
    save(make_wide(), tmp_path / "base")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROCESSES, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)
    one, other = (open_checkpoint(tmp_path / f"lora{rank}" / "adapter_model.safetensors") for rank in (0, 1))
    assert list(one.tensors) == list(other.tensors)
    assert all(torch.equal(one.read(name), other.read(name)) for name in one.tensors)


def make_wide() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
