"""A dtype that code got from `torch.get_default_dtype()` is told from one that it names, by the code that calls."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from types import CodeType

import pytest
import torch
from torch import nn

from shardload import build_shell
from shardload.model import asked_dtype

EXACT = "exact"  # instructions tell their columns, as from Python 3.11 on
LINES = "lines"  # they tell their lines


@pytest.fixture(params=[EXACT, LINES])
def places(request, monkeypatch) -> Iterator[str]:
    """Run a test with instructions that tell their place, and with those of Python 3.10 (on it, with those twice)."""
    if request.param is LINES and sys.version_info >= (3, 11):
        instructions = dis.get_instructions

        def without_columns(code: CodeType) -> list[dis.Instruction]:
            return [one._replace(positions=None) for one in instructions(code)]

        monkeypatch.setattr(dis, "get_instructions", without_columns)
    asked_dtype._code.cache_clear()
    yield request.param
    asked_dtype._code.cache_clear()


def table_of(way: Callable[..., torch.Tensor], *args: object) -> torch.Tensor:
    """Return what `way` makes in the constructor of a shell in half precision."""
    made: list[torch.Tensor] = []

    def make() -> nn.Module:
        made.append(way(*args))
        return nn.Identity()

    build_shell(make, dtype=torch.float16)
    return made[0]


def in_the_call() -> torch.Tensor:
    return torch.arange(3).float().to(torch.get_default_dtype())


def by_keyword() -> torch.Tensor:
    return torch.arange(3).to(dtype=torch.get_default_dtype())


def by_variable() -> torch.Tensor:
    default = torch.get_default_dtype()
    scaled = torch.arange(3).float() / 3
    return scaled.to(default)


def by_choice(dtype: torch.dtype | None = None) -> torch.Tensor:
    dtype = dtype if dtype is not None else torch.get_default_dtype()
    return torch.arange(3, dtype=dtype)


class Table:
    def __init__(self) -> None:
        self.kind = torch.get_default_dtype()
        self.values = torch.arange(3).to(self.kind)

    def cast(self, kind: torch.dtype) -> torch.Tensor:
        return self.values.float().to(kind)


def by_attribute() -> torch.Tensor:
    return Table().values


def by_argument() -> torch.Tensor:
    return Table().cast(torch.get_default_dtype())


def by_argument_in_a_variable() -> torch.Tensor:
    table, default = Table(), torch.get_default_dtype()
    return table.cast(default)


def from_torch_by_name() -> torch.Tensor:
    from torch import get_default_dtype

    return torch.arange(3, dtype=get_default_dtype())


ASKED = (
    in_the_call,
    by_keyword,
    by_variable,
    by_argument,
    by_argument_in_a_variable,
)


@pytest.mark.parametrize("way", [*ASKED, from_torch_by_name], ids=lambda way: way.__name__)
def test_a_dtype_that_code_asks_for_is_that_of_the_constructor(way, places):
    assert table_of(way).dtype == torch.float16


class Rotary:
    """As published code computes positions: in the dtype of a table that is float32 by name."""

    def __init__(self) -> None:
        self.inv_freq = torch.arange(0, 4).float()

    def table(self, positions: int, dtype: torch.dtype) -> torch.Tensor:
        at = torch.arange(positions, dtype=self.inv_freq.dtype)
        return torch.outer(at, self.inv_freq).cos().to(dtype)


def test_positions_in_float32_on_the_way_to_a_half_table_are_not_rounded(places):
    """bfloat16 has no number between 256 and 258."""
    made = table_of(lambda: Rotary().table(600, torch.get_default_dtype()))
    whole = torch.outer(torch.arange(600.0), torch.arange(4.0)).cos()
    assert torch.equal(made, whole.to(torch.float16))


def named_below(dtype: torch.dtype) -> torch.Tensor:
    assert dtype is not None
    return torch.arange(4, dtype=torch.float32) / 3


def chosen(dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.arange(3, dtype=dtype or torch.get_default_dtype())


NAMED = {
    "below a call that asks": lambda: named_below(torch.get_default_dtype()),
    "given in place of the default": lambda: by_choice(torch.float32),
    "given beside the question": lambda: chosen(torch.float32),
    "by the name of a type": lambda: torch.arange(300).type("torch.FloatTensor"),
    "by a type": lambda: torch.arange(300).type(torch.FloatTensor),
    # What no caller's code shows is taken for the class's own (docs/construction.md).
    "in one of two branches": by_choice,
    "kept in an attribute": by_attribute,
}


@pytest.mark.parametrize("way", NAMED)
def test_a_dtype_that_no_code_asked_for_here_stays(way, places):
    assert table_of(NAMED[way]).dtype == torch.float32


def test_what_is_asked_beside_an_argument_that_was_not_given_is_the_default(places):
    assert table_of(chosen).dtype == torch.float16


def named() -> torch.Tensor:
    return torch.arange(3).to(torch.float32)


def named_beside_one_that_was_asked_for() -> torch.Tensor:
    default = torch.get_default_dtype()
    table = torch.arange(3).to(torch.float32)
    assert torch.zeros(1, dtype=default).dtype == torch.float16
    return table


def named_in_a_function_that_got_one() -> torch.Tensor:
    def cast(table: torch.Tensor) -> torch.Tensor:
        return table.to(torch.float32)

    default = torch.get_default_dtype()
    assert torch.zeros(1, dtype=default).dtype == torch.float16
    return cast(torch.arange(3))


ALSO_NAMED = (named, named_beside_one_that_was_asked_for, named_in_a_function_that_got_one)


@pytest.mark.parametrize("way", ALSO_NAMED, ids=lambda way: way.__name__)
def test_a_dtype_that_code_names_stays(way, places):
    assert table_of(way).dtype == torch.float32


def both_in_one_line() -> torch.Tensor:
    return [torch.zeros(1, dtype=torch.float32), torch.ones(1, dtype=torch.get_default_dtype())][0]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="instructions tell their lines alone")
def test_a_named_dtype_beside_the_default_in_one_line_stays_where_instructions_tell_their_columns():
    assert table_of(both_in_one_line).dtype == torch.float32
