"""A shell's constructor works in a default dtype of its own: its tables are those of torch's `set_default_dtype`."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from shardload import build_shell

DTYPES = (torch.bfloat16, torch.float16, torch.float64)


def alibi_slopes() -> torch.Tensor:
    powers = torch.arange(1, 9)
    return torch.pow(torch.tensor(2 ** -(2 ** -(math.log2(8) - 3))), powers)


def sinusoids() -> torch.Tensor:
    position = torch.arange(0, 16).unsqueeze(1)
    angle = position * torch.exp(torch.arange(0, 8, 2) * -(math.log(10000.0) / 8))
    table = torch.zeros(16, 8)
    table[:, 0::2], table[:, 1::2] = torch.sin(angle), torch.cos(angle)
    return table


def causal() -> torch.Tensor:
    return torch.triu(torch.full((4, 4), float("-inf")), diagonal=1)


def random() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.cat([torch.rand(4), torch.randn(4), torch.normal(0.0, 1.0, (4,))])


WAYS: dict[str, Callable[[], torch.Tensor]] = {
    "tensor": lambda: torch.tensor([0.1, 0.2]),
    "tensor of integers": lambda: torch.tensor([1, 2]),
    "tensor of tensors": lambda: torch.tensor([torch.tensor(0.1), 0.3]),
    "tensor in the names": lambda: torch.tensor(data=[0.1, 0.2]),
    "scalar": lambda: torch.scalar_tensor(0.1),
    "zeros": lambda: torch.zeros(2, 3),
    "ones": lambda: torch.ones((2, 3), dtype=None),
    "full": lambda: torch.full((3,), 0.1),
    "full of integers": lambda: torch.full((3,), 7),
    "eye": lambda: torch.eye(3),
    "as_tensor": lambda: torch.as_tensor([0.1]),
    "asarray": lambda: torch.asarray([0.1]),
    "arange": lambda: torch.arange(4),
    "arange of floats": lambda: torch.arange(0, 1, 0.1),
    "linspace": lambda: torch.linspace(0, 1, 7),
    "logspace": lambda: torch.logspace(0, 1, 7),
    "hann window": lambda: torch.hann_window(8),
    "kaiser window": lambda: torch.kaiser_window(8, periodic=False),
    "random": random,
    "size in a tensor": lambda: torch.ones(torch.tensor(3)) / 3,
    "linspace of tensors": lambda: torch.linspace(torch.tensor(0.1), torch.tensor(1), 7),
    "random about a table": lambda: [torch.manual_seed(0), torch.normal(torch.arange(4) / 3, 1.0)][1],
    "out of a named dtype": lambda: torch.ones(3, out=torch.empty(3, dtype=torch.float32)),
    "quotient": lambda: torch.arange(8) / 7,
    "quotient of a number": lambda: 1.0 / torch.arange(1, 9),
    "quotient of integers": lambda: torch.arange(8) / torch.arange(1, 9),
    "quotient of booleans": lambda: (torch.arange(4) > 1) / 3,
    "product with booleans": lambda: (torch.arange(4) > 1) * 0.1,
    "power": lambda: 10000 ** (torch.arange(0, 8, 2) / 8),
    "rotary": lambda: 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8)),
    "rotary of integers": lambda: 1.0 / (10000 ** (torch.arange(0, 8, 2) / 8)),
    "root": lambda: torch.sqrt(torch.arange(5)),
    "logarithm": lambda: torch.log(torch.tensor(3)),
    "atan2": lambda: torch.atan2(torch.arange(4), torch.arange(4) + 1),
    "alibi": alibi_slopes,
    "sinusoids": sinusoids,
    "causal mask": causal,
    "where": lambda: torch.where(torch.arange(4) > 1, 0.0, -0.1),
    "where of a tensor": lambda: torch.where(torch.arange(4) > 1, torch.arange(4), 0.1),
    "outer": lambda: torch.outer(torch.arange(4), torch.tensor([0.1, 0.2])),
    "stack": lambda: torch.stack([torch.tensor(i / 3) for i in range(3)]),
    "cat with integers": lambda: torch.cat([torch.zeros(2) + 0.1, torch.arange(2)]),
    "new": lambda: torch.zeros(1).new_full((2,), 0.1),
    "like": lambda: torch.full_like(torch.zeros(2), 0.1),
    "mask in the names": lambda: torch.where(torch.arange(4) > 1, other=0.1, self=0.0),
    "tensors of a named dtype": lambda: torch.tensor(data=[torch.tensor(0.1, dtype=torch.float32)]),
    "tensor of integer tensors": lambda: torch.tensor([torch.tensor(1), 0.1]),
    "out": lambda: torch.sin(torch.arange(4) / 3, out=torch.zeros(4)),
    "in place": lambda: torch.zeros(4).add_(torch.arange(4), alpha=0.1),
    "in a list": lambda: torch.broadcast_tensors(torch.arange(3) / 3, torch.zeros(1))[0],
    "several results": lambda: torch.frexp(torch.arange(4) / 3)[0],
    "float()": lambda: torch.arange(4).float() / 3,
    "double()": lambda: torch.arange(4).double() / 3,
    "to a named dtype": lambda: torch.arange(4).to(torch.float32) / 3,
    "of a named dtype": lambda: torch.zeros(4, dtype=torch.float32) + 0.1,
    "like one of a named dtype": lambda: torch.arange(4).to(torch.zeros(1, dtype=torch.float32)) / 3,
    "to the default": lambda: (torch.arange(4).float() / 3).to(torch.get_default_dtype()),
    "of the default": lambda: torch.arange(4, dtype=torch.get_default_dtype()) / 3,
}


class Holder(nn.Module):
    def __init__(self, way: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.register_buffer("table", way(), persistent=False)
        self.weight = nn.Parameter(torch.zeros(2))
        self.linear = nn.Linear(2, 2)


@pytest.fixture
def default() -> Iterator[Callable[[torch.dtype], None]]:
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_a_table_is_the_one_that_torch_makes_in_that_default_dtype(name, dtype, default):
    ours = build_shell(lambda: Holder(WAYS[name]), dtype=dtype).model
    default(dtype)
    theirs = Holder(WAYS[name])
    assert ours.table.dtype == theirs.table.dtype
    assert torch.equal(ours.table, theirs.table)
    assert ours.weight.dtype == ours.linear.weight.dtype == theirs.weight.dtype


def test_a_function_without_a_kernel_for_the_dtype_is_computed_in_torchs_own_and_cast(default):
    def way() -> torch.Tensor:
        return torch.special.bessel_j0(torch.arange(3))

    assert torch.equal(build_shell(lambda: Holder(way), dtype=torch.float16).model.table, way().half())
    default(torch.float16)
    with pytest.raises(NotImplementedError):
        way()


def test_other_threads_keep_their_default_dtype_meanwhile():
    inside, done = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        inside.wait(120)
        seen.append((torch.get_default_dtype(), torch.zeros(1).dtype, nn.Linear(1, 1).weight.dtype))
        done.set()

    def make() -> nn.Module:
        inside.set()
        assert done.wait(120)
        return Holder(lambda: torch.zeros(1))

    thread = threading.Thread(target=other)
    thread.start()
    model = build_shell(make, dtype=torch.float16).model
    thread.join()
    assert seen == [(torch.float32, torch.float32, torch.float32)]
    assert model.table.dtype == model.weight.dtype == torch.float16


class Sets(nn.Module):
    """Sets the default dtype for a while, as code of repos does."""

    def __init__(self) -> None:
        super().__init__()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        self.inside = Holder(lambda: torch.arange(3) / 3)
        torch.set_default_dtype(before)
        self.after = Holder(lambda: torch.arange(3) / 3)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_default_dtype_that_the_constructor_sets_is_the_one_of_what_it_makes_next(dtype, default):
    ours = build_shell(Sets, dtype=dtype).model
    assert torch.get_default_dtype() == torch.float32
    default(dtype or torch.float32)
    theirs = Sets()
    for one, other in ((ours.inside, theirs.inside), (ours.after, theirs.after)):
        assert one.table.dtype == other.table.dtype
        assert torch.equal(one.table, other.table)
        assert one.weight.dtype == other.weight.dtype


def test_a_default_dtype_that_another_thread_sets_is_not_that_of_the_constructor(default):
    def make() -> nn.Module:
        thread = threading.Thread(target=default, args=(torch.float64,))
        thread.start()
        thread.join()
        return Holder(lambda: torch.arange(3) / 3)

    model = build_shell(make, dtype=torch.float16).model
    assert model.table.dtype == model.weight.dtype == torch.float16
    assert torch.get_default_dtype() == torch.float64


class Whole(nn.Module):
    """Asks for float32 by name around what it computes, which is what torch's default dtype is already."""

    def __init__(self) -> None:
        super().__init__()
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        self.register_buffer("table", torch.arange(300) / 1.0)
        torch.set_default_dtype(before)


def test_float32_that_a_class_sets_by_name_stays():
    model = build_shell(Whole, dtype=torch.bfloat16).model
    assert model.table.dtype == torch.float32
    assert torch.equal(model.table, torch.arange(300.0))
