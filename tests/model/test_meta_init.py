"""While a shell is built, parameters are on meta and all other tensors are computed; afterwards torch is as before."""

from __future__ import annotations

import gc
import sys
import threading
import types

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from shardload import build_shell, fill, open_checkpoint
from shardload.model.meta_init import constructing
from tests.model.hostile import Hostile
from tests.operations import Operations
from tests.tiny import (
    Net,
    assert_same_state,
    meta_names,
    random_state,
    run_python,
    torch_filled,
    write_checkpoint,
)


class StubbornRotary(nn.Module):
    """Computes its table and refuses a stored one, as the rotary table of ChatGLM-6B does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8)))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        pass


class OldStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rotary = StubbornRotary()
        self.dense = nn.utils.skip_init(nn.Linear, 4, 4, dtype=torch.half)


def test_skip_init_leaves_no_parameter_in_memory_and_a_refused_table_is_as_computed(tmp_path):
    state = {**random_state(OldStyle()), "rotary.inv_freq": torch.zeros(4)}
    shell = build_shell(OldStyle)
    assert [name for name, p in shell.model.named_parameters() if not p.is_meta] == []
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert meta_names(shell.model) == []
    assert torch.equal(shell.model.rotary.inv_freq, StubbornRotary().inv_freq)
    assert_same_state(shell.model, torch_filled(OldStyle, state))


def test_the_collector_stays_on_and_passes_over_what_is_old():
    seen = []

    def make() -> nn.Module:
        seen.append((gc.isenabled(), gc.get_freeze_count() > 0))
        return nn.Linear(2, 2)

    build_shell(make)
    assert seen == [(True, True)]
    assert gc.get_freeze_count() == 0


def test_initialisers_cost_nothing_in_a_shell():
    """Operations are counted, not timed: only the creation of empty tensors reaches torch."""
    operations = Operations()

    def make() -> nn.Module:
        with operations:
            model = nn.Sequential(nn.Linear(64, 64), nn.Embedding(100, 8), nn.Conv1d(4, 4, 3))
            nn.init.xavier_uniform_(model[0].weight)
            nn.init.orthogonal_(model[0].weight)
        return model

    build_shell(make)
    assert {
        name for name in operations.names if "empty" not in name and name not in ("detach", "new_empty")
    } == set()


def test_a_parameter_is_on_meta_as_soon_as_it_is_made():
    """A move to meta after construction would be too late: the whole model would have been in memory."""
    seen = []

    def make() -> nn.Module:
        model = nn.utils.skip_init(nn.Linear, 4, 4, dtype=torch.half)
        seen.append(model.weight.is_meta)
        seen.append(model.half().weight.is_meta)
        seen.append(nn.Parameter(torch.ones(3)).is_meta)
        return model

    build_shell(make)
    assert seen == [True, True, True]


def test_a_load_with_skip_init_does_not_import_sympy(tmp_path):
    """torch's own to_empty imports sympy through a Python kernel: more than half the time of a small load."""
    folder = write_checkpoint(tmp_path, {"weight": torch.ones(4, 4), "bias": torch.ones(4)})
    code = """
import sys, torch
from shardload import from_pretrained
make = lambda config: torch.nn.utils.skip_init(torch.nn.Linear, 4, 4)
before = "sympy" in sys.modules
from_pretrained(sys.argv[1], model_class=make, config={})
print(before, "sympy" in sys.modules)
"""
    assert run_python(code, str(folder)).stdout.split() == ["False", "False"]


def linear() -> nn.Module:
    return nn.Linear(2, 2)


def test_a_default_dtype_of_one_thread_is_not_what_another_puts_back():
    """Thread B begins while the constructor of thread A has set half precision, and ends after A."""
    half_is_default, b_has_begun = threading.Event(), threading.Event()

    def a() -> nn.Module:
        torch.set_default_dtype(torch.half)
        half_is_default.set()
        b_has_begun.wait(120)
        return linear()

    def b() -> nn.Module:
        b_has_begun.set()
        first.join(120)
        return linear()

    first = threading.Thread(target=lambda: build_shell(a))
    first.start()
    half_is_default.wait(120)
    try:
        build_shell(b)
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


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


def test_default_dtype_is_put_back():
    def make() -> nn.Module:
        torch.set_default_dtype(torch.float16)
        return nn.Linear(2, 2)

    assert build_shell(make).model.weight.dtype == torch.float16
    assert torch.get_default_dtype() == torch.float32


def names_of_torch() -> dict[str, object]:
    """Every name of the parts of torch that a constructor meets, with what it stands for."""
    owners = (torch, torch.Tensor, torch.nn, nn.Module, nn.Parameter, nn.init, nn.Linear, torch.overrides, gc)
    return {f"{owner.__name__}.{name}": value for owner in owners for name, value in vars(owner).items()}


@pytest.mark.parametrize("fails", [False, True])
def test_torch_is_as_it_is_while_a_constructor_runs_and_afterwards(fails):
    before = names_of_torch()
    changed = []

    def make() -> nn.Module:
        model = Hostile()
        now = names_of_torch()
        changed.append([name for name in before if now.get(name) is not before[name]])
        if fails:
            raise RuntimeError("no")
        return model

    if fails:
        with pytest.raises(RuntimeError, match="no"):
            build_shell(make)
    else:
        build_shell(make)
    now = names_of_torch()
    assert changed == [[]]
    assert [name for name in before if now.get(name) is not before[name]] == []
    assert torch._C._len_torch_function_stack() == 0
    assert not constructing()


def test_other_threads_build_real_models_meanwhile():
    inside, done = threading.Event(), threading.Event()
    real: list[nn.Module] = []

    def other() -> None:
        inside.wait(120)
        real.append(Net())
        done.set()

    def make() -> nn.Module:
        inside.set()
        assert done.wait(120)
        return Net()

    thread = threading.Thread(target=other)
    thread.start()
    shell = build_shell(make)
    thread.join()
    assert all(p.is_meta for p in shell.model.parameters())
    assert not any(p.is_meta for p in real[0].parameters())
    assert float(real[0].embed.weight.detach().abs().sum()) > 0


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
    """A linear layer that quantizes the weight of another one and moves it between devices, as published code does."""

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
        torch.empty(1, device="meta").cpu()  # torch behaves as before


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


def test_the_default_dtype_survives_threads_that_set_it_at_the_same_time():
    """Each thread sets half precision for a while; whichever ends last, the process keeps its first dtype."""
    inside = threading.Barrier(2)

    def make() -> nn.Module:
        torch.set_default_dtype(torch.float16)
        inside.wait(120)
        return nn.Linear(2, 2)

    def other() -> nn.Module:
        inside.wait(120)
        torch.set_default_dtype(torch.float64)
        return nn.Linear(2, 2)

    thread = threading.Thread(target=lambda: build_shell(other))
    thread.start()
    build_shell(make)
    thread.join()
    assert torch.get_default_dtype() == torch.float32


class Seeing(TorchFunctionMode):
    """Counts the calls that it sees."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_a_mode_that_a_constructor_leaves_behind_stays_and_ours_goes():
    context = torch.device("cpu")

    def make() -> nn.Module:
        context.__enter__()
        return nn.Linear(2, 2)

    try:
        assert build_shell(make).model.weight.is_meta
        assert torch._C._len_torch_function_stack() == 1
        assert not nn.Linear(2, 2).weight.is_meta
    finally:
        context.__exit__(None, None, None)


def test_a_callers_mode_stays_where_a_constructor_fails_after_setting_a_default_device():
    def make() -> nn.Module:
        torch.set_default_device("cpu")
        raise ValueError("no")

    try:
        with Seeing() as seeing:
            with pytest.raises(ValueError, match="no"):
                build_shell(make)
            before = seeing.calls
            torch.ones(2)
            assert seeing.calls > before
    finally:
        torch.set_default_device(None)
    assert torch._C._len_torch_function_stack() == 0


def test_a_default_dtype_that_a_helper_of_another_module_sets_is_put_back(monkeypatch):
    helper = types.ModuleType("tests.model.helper")
    exec("import torch\ndef setup(): torch.set_default_dtype(torch.float64)", vars(helper))
    monkeypatch.setitem(sys.modules, helper.__name__, helper)

    def make() -> nn.Module:
        helper.setup()
        return nn.Linear(2, 2)

    try:
        assert build_shell(make).model.weight.dtype == torch.float64
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_gradients_are_on_again_after_an_error_that_left_them_off():
    """Ctrl-C may fall into the last lines of a `no_grad` block of Python's."""

    def make() -> nn.Module:
        torch._C._set_grad_enabled(False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shell(make)
    assert torch.is_grad_enabled()
