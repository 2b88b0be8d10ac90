"""Targets that join, cut, wrap and swap tensors are judged on headers; torch's own results are the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    MemoryLimitError,
    MismatchError,
    OnDevice,
    UsageError,
    build_shell,
    fill,
    open_checkpoint,
)
from shardload.keymap.derived import narrowed
from shardload.placement.taken import Taken
from shardload.placement.target import Claim, Target
from tests.tiny import random_state, write_checkpoint

WIDTH = 64


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))


def loaded(state: dict[str, torch.Tensor]) -> nn.Sequential:
    model = make()
    model.load_state_dict(state)
    return model


# --- several stored tensors for one slot ------------------------------------------------------------------------


def packed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scales).round().to(torch.int8), scales


class Unpacking(Target):
    """Unpacks weights that are stored as int8 values with one scale per row to float32."""

    def claims(self, slots, stored):
        return [
            Claim({"values": f"{name}.values", "scales": f"{name}.scales"}, (name,))
            for name in slots
            if f"{name}.values" in stored
        ]

    def claim_bytes(self, claim, parts):
        return Taken(anonymous=4 * parts["values"].numel)

    def make(self, claim, parts):
        return {claim.fills[0]: parts["values"].float() * parts["scales"]}


@pytest.fixture
def packed_folder(tmp_path):
    state = random_state(make())
    stored = {}
    for name, tensor in state.items():
        if tensor.ndim == 2:
            stored[f"{name}.values"], stored[f"{name}.scales"] = packed(tensor)
            state[name] = stored[f"{name}.values"].float() * stored[f"{name}.scales"]
        else:
            stored[name] = tensor
    return write_checkpoint(tmp_path / "packed", stored, shards=3), state


@pytest.mark.parametrize("copy", [False, True])
def test_several_stored_tensors_fill_one_slot(packed_folder, copy):
    folder, state = packed_folder
    shell = build_shell(make)
    report = fill(shell, open_checkpoint(folder), target=Unpacking(), copy=copy)
    for name, tensor in loaded(state).state_dict().items():
        assert torch.equal(shell.model.state_dict()[name], tensor), name
    assert report.loaded == len(state)
    own = 2 * 4 * WIDTH * WIDTH
    plain = 4 * WIDTH * 4
    assert (report.stated.anonymous, report.stated.mapped) == ((own + plain, 0) if copy else (own, plain))


def test_what_is_not_claimed_is_judged(packed_folder):
    folder, _ = packed_folder
    with pytest.raises(MismatchError, match="4 unexpected, 2 missing"):
        fill(build_shell(make), open_checkpoint(folder))


def test_a_claim_is_part_of_the_statement(packed_folder):
    folder, _ = packed_folder
    shell = build_shell(make)
    peak = fill(build_shell(make), open_checkpoint(folder), target=Unpacking()).stated.peak
    with pytest.raises(MemoryLimitError):
        fill(shell, open_checkpoint(folder), target=Unpacking(), max_memory=peak - 1)
    assert all(parameter.is_meta for parameter in shell.model.parameters())
    fill(shell, open_checkpoint(folder), target=Unpacking(), max_memory=peak)


@pytest.mark.parametrize("fault", ["no slot", "another name", "an error"])
def test_a_target_that_makes_something_else_leaves_the_model_as_it_was(packed_folder, fault):
    class Wrong(Unpacking):
        def claims(self, slots, stored):
            claims = super().claims(slots, stored)
            return [Claim(claim.stored, ("nowhere",)) for claim in claims] if fault == "no slot" else claims

        def make(self, claim, parts):
            if fault == "an error":
                raise ValueError("it can't")
            return {"elsewhere": parts["values"]}

    folder, _ = packed_folder
    model = make()
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match="it can't" if fault == "an error" else "the target"):
        fill(model, open_checkpoint(folder), target=Wrong())
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


# --- one stored tensor for several slots, in a module that is swapped in before the survey ----------------------


class Int8Linear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.register_buffer("weight", torch.empty(rows, columns, dtype=torch.int8, device="meta"))
        self.register_buffer("scales", torch.empty(rows, 1, device="meta"))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float() * self.scales, self.bias)


class Packing(Target):
    """Swaps every Linear for an int8 one, and packs each weight while it is loaded."""

    def prepare(self, model):
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8Linear(child))

    def claims(self, slots, stored):
        return [
            Claim({"weight": name}, (name, f"{name.removesuffix('weight')}scales"))
            for name, slot in slots.items()
            if slot.dtype == torch.int8
        ]

    def claim_bytes(self, claim, parts):
        rows, columns = parts["weight"].shape
        return Taken(anonymous=rows * columns + 4 * rows)

    def make(self, claim, parts):
        return dict(zip(claim.fills, packed(parts["weight"]), strict=True))


def test_one_stored_tensor_fills_several_slots_of_a_swapped_module(tmp_path):
    state = random_state(make())
    folder = write_checkpoint(tmp_path / "plain", state, shards=2)
    shell = build_shell(make)
    report = fill(shell, open_checkpoint(folder), target=Packing())
    assert isinstance(shell.model[0], Int8Linear)
    values, scales = packed(state["0.weight"])
    assert torch.equal(shell.model[0].weight, values)
    assert torch.equal(shell.model[0].scales, scales)
    assert report.stated.anonymous == 2 * (WIDTH * WIDTH + 4 * WIDTH)
    x = torch.randn(3, WIDTH)
    assert torch.allclose(shell.model(x), loaded(state)(x), rtol=0.02)


def test_a_refused_load_puts_swapped_modules_back(tmp_path):
    state = random_state(make())
    del state["1.bias"]
    folder = write_checkpoint(tmp_path / "plain", state, shards=2)
    model = make()
    modules, before = list(model.modules()), dict(model.named_parameters())
    with pytest.raises(MismatchError, match="1 missing"):
        fill(model, open_checkpoint(folder), target=Packing())
    assert list(model.modules()) == modules
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


# --- a part of a stored tensor, in a subclass of Tensor ---------------------------------------------------------


class Shared(torch.Tensor):
    """The rows of a larger matrix that belong to one rank."""


class Rows(OnDevice):
    """Reads the rows that belong to one of two ranks."""

    def __init__(self, rank: int, **how) -> None:
        super().__init__(**how)
        self.rank = rank

    def part(self, key, tensor):
        half = tensor.shape[0] // 2
        return narrowed(tensor, 0, self.rank * half, half)

    def put(self, module, name, tensor):
        module._parameters[name] = nn.Parameter(tensor.as_subclass(Shared))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", [{}, {"dtype": torch.bfloat16}])
def test_a_part_of_each_stored_tensor_is_read(tmp_path, rank, how):
    state = random_state(make())
    folder = write_checkpoint(tmp_path / "plain", state, shards=2)
    shell = build_shell(make)
    report = fill(shell, open_checkpoint(folder), target=Rows(rank, **how))
    half = slice(rank * WIDTH // 2, (rank + 1) * WIDTH // 2)
    for name, parameter in shell.model.named_parameters():
        assert type(parameter.data) is Shared, name
        assert torch.equal(parameter.as_subclass(torch.Tensor), state[name][half].to(parameter.dtype)), name
    assert report.nbytes == sum(tensor.nbytes for tensor in state.values()) // 2
    assert report.stated.anonymous == (report.nbytes // 2 if how else 0)
    assert report.stated.mapped == (0 if how else report.nbytes)


def test_the_pairing_is_judged_by_the_whole_tensor(tmp_path):
    state = random_state(make())
    state["0.weight"] = state["0.weight"][: WIDTH // 2].contiguous()
    folder = write_checkpoint(tmp_path / "plain", state, shards=1)
    with pytest.raises(MismatchError, match="misshapen"):
        fill(build_shell(make), open_checkpoint(folder), target=Rows(0))


def test_a_target_that_does_not_say_what_it_takes_is_counted_as_one_that_copies(tmp_path):
    class Doubling(Target):
        def place(self, key, stored):
            return stored.double()

    state = random_state(make())
    folder = write_checkpoint(tmp_path / "plain", state, shards=1)
    stated = fill(build_shell(make), open_checkpoint(folder), target=Doubling()).stated
    assert stated.anonymous == sum(tensor.nbytes for tensor in state.values())


def test_what_is_no_target_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "plain", random_state(make()), shards=1)
    with pytest.raises(UsageError, match="a target is wanted, not str"):
        fill(build_shell(make), open_checkpoint(folder), target="cpu")
