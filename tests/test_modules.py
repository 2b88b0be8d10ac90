"""Every kind of module that torch has, and some odd ones, filled as torch's load_state_dict fills them.

Each is filled as a shell and as a module that was built for real, from shards, and compared with the oracle in
state, dtype and (where there is an input) output.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from shardload import (
    CorruptError,
    MismatchError,
    UnsupportedError,
    UsageError,
    build_shell,
    check,
    fill,
    open_checkpoint,
    save,
)
from tests.tiny import assert_same_state, meta_names, random_state, write_checkpoint


def quietly(make):
    """Build what torch calls deprecated or experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ParameterList([nn.Parameter(torch.randn(4)) for _ in range(12)])
        self.named = nn.ParameterDict(
            {"a": nn.Parameter(torch.randn(4)), "b_c": nn.Parameter(torch.randn(4))}
        )

    def forward(self, x):
        return x * self.many[3] + self.named["a"] * self.many[11]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x))


class Odd(nn.Module):
    """No parameter, no buffer, 0 dimensions, 0 elements, complex, bool, a large integer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("none", None)
        self.register_buffer("nothing", None)
        self.scalar = nn.Parameter(torch.tensor(3.0))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.complex = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("large", torch.tensor(2**62))
        self.register_buffer("no_ids", torch.empty(0, dtype=torch.int64))
        self.packed = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return x * self.scalar


class Remembering(nn.Module):
    """Computes something whenever its weight is set."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.linear = nn.Linear(4, 4)

    def __setattr__(self, name, value) -> None:
        super().__setattr__(name, value)
        if name == "weight":
            self.doubled = value * 2

    def forward(self, x):
        return self.linear(x) * self.doubled


class Slotted(nn.Module):
    __slots__ = ("factor",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.factor = 3

    def forward(self, x):
        return x * self.weight * self.factor


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    prune.random_unstructured(model[0], "weight", 0.5)
    return model


def after(wrap) -> nn.Module:
    return quietly(lambda: nn.Sequential(wrap(nn.Linear(4, 5)), nn.Linear(5, 2)))


def rows():
    return (torch.randn(3, 4),)


def sequence():
    return (torch.randn(2, 3, 4),)


def pair():
    return torch.randn(2, 3, 8), torch.randn(2, 3, 8)


KINDS = {
    "ParameterList": (Lists, rows),
    "LSTM": (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True), sequence),
    "LSTM with projection": (lambda: nn.LSTM(4, 5, proj_size=3), None),
    "GRU": (lambda: nn.GRU(4, 5), sequence),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), lambda: sequence() * 3),
    "MultiheadAttention, all": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3, vdim=5), None),
    "Transformer": (lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), pair),
    "BatchNorm": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)
        ),
        rows,
    ),
    "InstanceNorm": (lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), None),
    "Conv": (
        lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
        lambda: (torch.randn(1, 3, 5, 5),),
    ),
    "weight_norm": (lambda: after(nn.utils.weight_norm), rows),
    "weight_norm, parametrized": (lambda: after(parametrizations.weight_norm), rows),
    "spectral_norm": (lambda: after(nn.utils.spectral_norm), rows),
    "spectral_norm, parametrized": (lambda: after(parametrizations.spectral_norm), rows),
    "pruned": (pruned, rows),
    "compiled": (lambda: torch.compile(nn.Linear(4, 4), backend="eager"), None),
    "shared under two paths": (Shared, rows),
    "odd": (Odd, rows),
    "own __setattr__": (Remembering, rows),
    "__slots__": (Slotted, rows),
    "double": (lambda: nn.Linear(4, 4).double(), None),
    "frozen": (lambda: nn.Linear(4, 4).requires_grad_(False), rows),
}


def built(make, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


@pytest.mark.parametrize("built_for_real", [False, True], ids=["shell", "real"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_filled_as_torch_fills_it(tmp_path, kind, built_for_real):
    make, inputs = KINDS[kind]
    state = {key: value.clone() for key, value in built(make, 1).state_dict().items()}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, kind="bin", shards=2))
    filled = built(make, 2) if built_for_real else build_shell(make)
    fill(filled, checkpoint)
    model = filled if built_for_real else filled.model
    oracle = built(make, 3)
    oracle.load_state_dict(state, assign=True)
    assert_same_state(model, oracle)
    assert meta_names(model) == []
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in oracle.parameters()]
    if inputs is not None:
        arguments = inputs()
        ours, theirs = model.eval()(*arguments), oracle.eval()(*arguments)
        assert torch.equal(*((ours[0], theirs[0]) if isinstance(ours, tuple) else (ours, theirs)))


@pytest.mark.parametrize("built_for_real", [False, True], ids=["shell", "real"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_lazy_modules_take_the_shapes_of_the_checkpoint(tmp_path, kind, built_for_real):
    def make() -> nn.Module:
        return quietly(lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2)))

    x = torch.randn(3, 4)
    oracle = make()
    oracle(x)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(oracle), kind=kind, shards=2))
    oracle.load_state_dict(random_state(oracle))
    filled = make() if built_for_real else build_shell(make)
    fill(filled, checkpoint)
    model = filled if built_for_real else filled.model
    assert torch.equal(model.eval()(x), oracle.eval()(x))


# --- what also points at a parameter ---------------------------------------------------------------------------


class Pointing(nn.Module):
    """Keeps its weight in a list, in a list that holds itself, and as a buffer that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.all = [self.linear.weight, (self.linear.bias, 1)]
        self.nested = {"deep": [{"er": self.linear.weight}]}
        self.nested["deep"].append(self.nested)
        self.register_buffer("mirror", self.linear.weight, persistent=False)
        self.register_buffer("stored", torch.zeros(2))
        self.also_stored = self.stored

    def pointers(self) -> bool:
        weight = self.linear.weight
        return (
            self.all[0] is weight
            and self.all[1][0] is self.linear.bias
            and self.nested["deep"][0]["er"] is weight
            and self.mirror is weight
            and self.also_stored is self.stored
        )


@pytest.mark.parametrize("built_for_real", [False, True], ids=["shell", "real"])
def test_what_points_at_a_parameter_points_at_the_loaded_one(tmp_path, built_for_real):
    state = random_state(Pointing())
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
    filled = Pointing() if built_for_real else build_shell(Pointing)
    model = filled if built_for_real else filled.model
    for _ in range(2):  # a second load replaces what the first one put there
        fill(filled, checkpoint)
        assert torch.equal(model.linear.weight, state["linear.weight"])
        assert model.pointers()


class StoredMirror(nn.Module):
    """A persistent buffer that is its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("mirror", self.weight)


@pytest.mark.parametrize("stored", [["weight"], ["mirror"], ["weight", "mirror"]])
def test_a_buffer_that_is_a_parameter_is_a_tie(tmp_path, stored):
    shell = build_shell(StoredMirror)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, dict.fromkeys(stored, torch.ones(4)), shards=1)))
    model = shell.model
    assert model.mirror is model.weight
    assert [name for name, _ in model.named_parameters()] == ["weight"]
    assert [name for name, _ in model.named_buffers()] == ["mirror"]
    assert torch.equal(model.weight, torch.ones(4))


def test_a_load_that_fails_leaves_an_rnn_its_old_weights(tmp_path):
    """An RNN computes with a list of its weights; that has to go back as well."""
    model = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4))
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(model)))
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-40])
    x = torch.randn(2, 3, 4)
    before = model[0](x)[0]
    with pytest.raises(CorruptError):
        fill(model, checkpoint)
    assert torch.equal(model[0](x)[0], before)


class FailsAtTheEnd:
    """A target that fails when everything is loaded."""

    def prepare(self, model) -> None:
        pass

    def place(self, key, stored):
        return stored

    def finish(self, model) -> None:
        raise RuntimeError("at the very end")


@pytest.mark.parametrize("make", [Pointing, lambda: after(nn.utils.spectral_norm), pruned])
def test_a_load_that_fails_at_the_very_end_leaves_every_pointer_as_it_was(tmp_path, make):
    model = make()
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(model)))
    before = [(module, {**module.__dict__}) for module in model.modules()]
    lists = model.all[:] if isinstance(model, Pointing) else []
    with pytest.raises(RuntimeError, match="at the very end"):
        fill(model, checkpoint, target=FailsAtTheEnd())
    for module, attributes in before:
        assert module.__dict__.keys() == attributes.keys()
        assert all(module.__dict__[name] is value for name, value in attributes.items())
    if isinstance(model, Pointing):
        assert all(new is old for new, old in zip(model.all, lists, strict=True))
        assert model.pointers()


class Noting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.linear.weight.no_weight_decay = True
        self.late = nn.Linear(2, 2)
        self.late.weight = nn.Parameter(torch.ones(2, 2)[:])
        self.late.weight.group = "late"
        self.register_load_state_dict_post_hook(lambda *_: None)


@pytest.mark.parametrize("built_for_real", [False, True], ids=["shell", "real"])
@pytest.mark.parametrize("kind", ["plain", "hooked"])
def test_what_is_noted_on_a_parameter_stays(tmp_path, built_for_real, kind):
    def make() -> nn.Module:
        model = Noting()
        if kind == "plain":
            model._load_state_dict_post_hooks.clear()
        return model

    filled = make() if built_for_real else build_shell(make)
    model = filled if built_for_real else filled.model
    fill(filled, open_checkpoint(write_checkpoint(tmp_path, random_state(model))))
    assert model.linear.weight.no_weight_decay
    assert model.late.weight.group == "late"


def test_a_model_that_was_changed_after_the_shell_was_built_is_judged_as_it_is(tmp_path):
    """The head was exchanged: judged by the old shapes, [12, 8] would be put into a layer of 20 outputs."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 12))

    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(make())))
    shell = build_shell(make)
    shell.model[1] = nn.Linear(8, 20)
    with pytest.raises(MismatchError, match="2 misshapen"):
        fill(shell, checkpoint)
    shell = build_shell(make)
    shell.model.append(nn.Linear(12, 12))
    with pytest.raises(MismatchError, match="2 missing"):
        fill(shell, checkpoint)
    shell = build_shell(make)
    shell.model.first = shell.model[0]
    del shell.model._modules["0"]
    assert [f.key for f in check(shell, checkpoint).faults if f.kind == "missing"] == [
        "first.weight",
        "first.bias",
    ]


# --- what is declined ------------------------------------------------------------------------------------------


def test_a_constructor_that_looks_at_its_parameters_values_is_told_what_to_do(tmp_path):
    def make() -> nn.Module:
        return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2))

    with pytest.raises(UnsupportedError, match="looks at the values") as caught:
        build_shell(make)
    assert "build the module for real" in caught.value.cure
    model = make()
    state = {key: value.clone() for key, value in make().state_dict().items()}
    fill(model, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert_same_state(model, make_and_load(make, state))


def make_and_load(make, state):
    model = make()
    model.load_state_dict(state, assign=True)
    return model


def test_a_constructors_own_errors_pass_through():
    with pytest.raises(RuntimeError, match="mine"):
        build_shell(lambda: (_ for _ in ()).throw(RuntimeError("mine")))


def test_a_scripted_module_is_declined_by_name(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), quietly(lambda: torch.jit.script(nn.Linear(2, 2))))
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(model)))
    with pytest.raises(UnsupportedError, match="scripted module") as caught:
        fill(model, checkpoint)
    assert caught.value.where == "1"


@pytest.mark.parametrize("made", [None, 3, nn.Linear])
def test_what_is_no_module_is_refused(made):
    with pytest.raises(UsageError, match="should make the model"):
        build_shell(lambda: made)


class Fusing(nn.Module):
    def __init__(self, error: type[Exception] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.error = error
        self._register_load_state_dict_pre_hook(self._fuse)

    def _fuse(self, state, prefix, *_args) -> None:
        parts = [state.pop(f"{prefix}{name}") for name in "ab"]
        if self.error and float(parts[0][0]) == 1.0:
            raise self.error("on purpose")
        state[f"{prefix}weight"] = torch.cat(parts)


@pytest.mark.parametrize("where", ["", "0."])
def test_a_hook_that_misses_a_name_is_a_fault_before_a_weight_is_read(tmp_path, where):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {f"{where}a": torch.ones(2)}, shards=1))
    shell = build_shell(lambda: nn.Sequential(Fusing()) if where else Fusing())
    (fault,) = check(shell, checkpoint).faults
    assert fault.kind == "refused"
    assert fault.key == ("0" if where else "Fusing")
    with pytest.raises(
        MismatchError, match=rf"a load_state_dict hook on Fusing failed: KeyError: '{where}b'"
    ):
        fill(shell, checkpoint)


@pytest.mark.parametrize("error", [KeyError, ValueError, RuntimeError])
def test_a_hook_that_fails_at_the_load_is_a_typed_error(tmp_path, error):
    state = {
        "0.a": torch.ones(2),
        "0.b": torch.ones(2),
        "1.weight": torch.ones(1, 1),
        "1.bias": torch.ones(1),
    }
    model = nn.Sequential(Fusing(error), nn.Linear(1, 1))
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(MismatchError, match="on purpose") as caught:
        fill(model, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert isinstance(caught.value.__cause__, error)
    assert {name: id(p) for name, p in model.named_parameters()} == before


# --- saved and loaded again ------------------------------------------------------------------------------------


def test_a_module_under_two_paths_is_saved_once_and_comes_back(tmp_path):
    model = Shared()
    model.load_state_dict(random_state(model))
    save(model, tmp_path)
    shell = build_shell(Shared)
    fill(shell, open_checkpoint(tmp_path))
    assert_same_state(shell.model, model)
    assert shell.model.a is shell.model.b


def test_two_parameters_in_one_memory_are_no_tie(tmp_path):
    """They are two parameters to whoever loads them: both have to be in the file."""

    def make() -> nn.Module:
        model = nn.Module()
        model.a = nn.Parameter(torch.ones(3))
        model.b = nn.Parameter(model.a.data)
        return model

    save(make(), tmp_path)
    shell = build_shell(make)
    fill(shell, open_checkpoint(tmp_path))
    assert torch.equal(shell.model.a, shell.model.b)
