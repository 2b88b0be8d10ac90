"""build_shell: parameters at no memory whatever the constructor does, computed tensors real."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import nn

from shardload import UnsupportedError
from shardload.model.meta_init import constructing, default_dtype_kept
from shardload.model.shell import build_shell, survey
from tests.tiny import Net


class Hostile(nn.Module):
    """Everything that published constructors do to parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = nn.utils.skip_init(nn.Linear, 6, 6, dtype=torch.float16)
        self.halved = nn.Linear(6, 6).half()
        self.moved = nn.Linear(6, 6).to("cpu")
        self.cast = nn.LayerNorm(6).to(torch.bfloat16)
        self.from_values = nn.Parameter(torch.ones(3, 3))
        self.listed = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(2)])
        self.tied = self.skipped.weight
        self.emptied = nn.Linear(6, 6, device="meta").to_empty(device="cpu")
        nn.init.normal_(self.from_values)
        self.moved.weight.data.normal_(0.0, 0.02)
        inv_freq = 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8))
        self.register_buffer("inv_freq", inv_freq)
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)), persistent=False)
        self.cos_cached = torch.cos(inv_freq)


def test_every_parameter_is_on_meta():
    model = build_shell(Hostile).model
    assert [name for name, p in model.named_parameters() if not p.is_meta] == []
    assert len(list(model.parameters())) == 13


def test_computed_tensors_are_what_the_class_computes():
    model, real = build_shell(Hostile).model, Hostile()
    for name in ("inv_freq", "mask", "cos_cached"):
        assert torch.equal(getattr(model, name), getattr(real, name))
        assert getattr(model, name).dtype == getattr(real, name).dtype


def test_shapes_dtypes_and_order_are_those_of_the_real_class():
    model, real = build_shell(Hostile).model, Hostile()
    ours = {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    theirs = {name: (p.shape, p.dtype, p.requires_grad) for name, p in real.named_parameters()}
    assert ours == theirs
    assert list(ours) == list(theirs)


def test_slots_tell_what_a_checkpoint_has_to_fill():
    slots = build_shell(Hostile).slots
    kinds = {name: slot.kind for name, slot in slots.items()}
    assert kinds["inv_freq"] == "buffer"
    assert kinds["mask"] == "computed"
    assert kinds["cos_cached"] == "attribute"
    stored = [name for name, slot in slots.items() if slot.is_stored]
    assert sorted(stored) == sorted(Hostile().state_dict())


def test_ties_survive():
    shell = build_shell(Hostile)
    assert shell.ties == (("tied", "skipped.weight"),)
    assert shell.model.tied is shell.model.skipped.weight


def test_a_parameter_made_in_its_own_way_is_swept_to_meta():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            raw = torch.Tensor._make_subclass(nn.Parameter, torch.ones(5), True)
            self.a = raw
            self.b = raw

    model = build_shell(Own).model
    assert model.a.is_meta
    assert model.a is model.b


def test_default_dtype_is_put_back():
    def make() -> nn.Module:
        torch.set_default_dtype(torch.float16)
        return nn.Linear(2, 2)

    assert build_shell(make).model.weight.dtype == torch.float16
    assert torch.get_default_dtype() == torch.float32


def test_torch_is_as_it_was_after_a_constructor_that_fails():
    new, apply, normal = nn.Parameter.__dict__["__new__"], nn.Module._apply, nn.init.normal_

    def make() -> nn.Module:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        build_shell(make)
    assert nn.Parameter.__dict__["__new__"] is new
    assert nn.Module._apply is apply
    assert nn.init.normal_ is normal
    assert gc.isenabled()
    assert not constructing()


def test_other_threads_build_real_models_meanwhile():
    inside, done = threading.Event(), threading.Event()
    real: list[nn.Module] = []

    def other() -> None:
        inside.wait(10)
        real.append(Net())
        done.set()

    def make() -> nn.Module:
        inside.set()
        assert done.wait(10)
        return Net()

    thread = threading.Thread(target=other)
    thread.start()
    shell = build_shell(make)
    thread.join()
    assert all(p.is_meta for p in shell.model.parameters())
    assert not any(p.is_meta for p in real[0].parameters())
    assert float(real[0].embed.weight.detach().abs().sum()) > 0


def test_a_module_under_two_paths_has_its_slots_under_both():
    shared = nn.Linear(2, 2)
    slots, ties = survey(nn.ModuleDict({"a": shared, "b": shared}))
    assert set(slots) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert set(ties) == {("a.weight", "b.weight"), ("a.bias", "b.bias")}


def test_a_table_on_the_device_of_a_weight_is_real():
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4))
            self.register_buffer("pos", torch.arange(4, device=self.weight.device), persistent=False)

    model = build_shell(Rotary).model
    assert model.weight.is_meta
    assert torch.equal(model.pos, torch.arange(4))
    assert model.weight.device.type == "meta", "outside of a constructor the device is what it is"


class Quantized(nn.Module):
    """A linear layer that quantizes another one's weight, moving it from device to device as published code does."""

    def __init__(self, device: str) -> None:
        super().__init__()
        whole = nn.Linear(6, 4)
        weight = whole.weight.to(device)
        scale = (weight.abs().max(dim=-1).values / 7).cpu()
        self.weight = nn.Parameter(
            torch.round(weight.cpu() / scale[:, None]).to(device, torch.int8), requires_grad=False
        )
        self.scale = nn.Parameter(scale.to(torch.empty(0, dtype=torch.float16)), requires_grad=False)
        self.bias = nn.Parameter(whole.bias.to(device), requires_grad=False)
        self.real = torch.ones(2).to(device)


def test_a_constructor_that_quantizes_moves_nothing_to_a_device():
    model, real = build_shell(lambda: Quantized("cpu")).model, Quantized("cpu")
    assert {name: (p.shape, p.dtype, p.device.type) for name, p in model.named_parameters()} == {
        name: (p.shape, p.dtype, "meta") for name, p in real.named_parameters()
    }
    assert not model.real.is_meta
    with pytest.raises(NotImplementedError):
        torch.empty(1, device="meta").cpu()  # torch is as it was


class WrittenForCuda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.inv_freq = (1.0 / torch.arange(1.0, 3.0)).cuda()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the table is on the GPU then, as the class says")
def test_a_table_that_is_sent_to_a_gpu_which_is_not_there_stays():
    assert build_shell(WrittenForCuda).model.inv_freq.tolist() == [1.0, 0.5]
    with pytest.raises((AssertionError, RuntimeError)):
        WrittenForCuda()


def test_a_buffer_that_is_computed_from_a_weight_is_refused_at_once():
    class Derived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))
            self.register_buffer("square", self.weight.detach() ** 2, persistent=False)

    with pytest.raises(UnsupportedError, match="computes square from its parameters"):
        build_shell(Derived)


def test_data_that_is_set_in_a_constructor_is_refused_by_name():
    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.weight.data = torch.ones(2, 2)
        return model

    with pytest.raises(UnsupportedError, match="a shell has none"):
        build_shell(make)


def test_a_module_of_the_callers_keeps_its_weights():
    trained = nn.Linear(2, 2)
    weight = trained.weight.detach().clone()

    class Head(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body
            self.head = nn.Linear(2, 1)

    for make in (lambda: trained, lambda: Head(trained)):
        shell = build_shell(make)
        assert torch.equal(trained.weight, weight)
    assert shell.model.head.weight.is_meta


def test_the_default_dtype_survives_threads_that_set_it_at_the_same_time():
    """Each sets half for a while; whichever leaves last, the process ends with what it began with."""
    inside = threading.Barrier(2)

    def make() -> nn.Module:
        torch.set_default_dtype(torch.float16)
        inside.wait(10)
        return nn.Linear(2, 2)

    def remote() -> None:
        inside.wait(10)
        with default_dtype_kept():
            torch.set_default_dtype(torch.float64)

    thread = threading.Thread(target=remote)
    thread.start()
    build_shell(make)
    thread.join()
    assert torch.get_default_dtype() == torch.float32
