"""Whether a call names a dtype itself, or passes on what `torch.get_default_dtype()` told it."""

from __future__ import annotations

import bisect
import dis
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.overrides

if TYPE_CHECKING:
    from types import CodeType, FrameType

_ASKS = "get_default_dtype"
_STORES = ("STORE_FAST", "STORE_NAME", "STORE_DEREF", "STORE_GLOBAL")
_LOADS = ("LOAD_FAST", "LOAD_NAME", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_CLOSURE")
_OWN = (str(Path(__file__).parent), str(Path(torch.overrides.__file__)))
_NEAR = 4  # instructions between the call of get_default_dtype and the one that stores its result


def asks_for_default(frame: FrameType | None, boundary: CodeType, default: torch.dtype) -> bool:
    """Whether the dtype `default` in the call that `frame` is in is what `torch.get_default_dtype()` said.

    It is where that is written into the call, or a variable was assigned from it in the same function; or where the
    dtype is an argument of the function, never assigned there, and the call of that function got it so. A variable with
    that dtype beside the question (`dtype or torch.get_default_dtype()`) is the answer. `boundary` is the code of the
    last frame to look at, which is left out with all of its file and of torch's own.
    """
    while frame is not None and frame.f_code is not boundary:
        if frame.f_code.co_filename.startswith(_OWN):
            frame = frame.f_back
            continue
        code = _code(frame.f_code)
        names, asks = code.read_at(frame.f_lasti)
        given = {name for name in names - code.named if frame.f_locals.get(name) is default}
        if asks or not given:
            return asks and not given
        if not given <= code.arguments:
            return False
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class _Code:
    """What a function reads where: the question for the default dtype, and its variables.

    `named` are variables that hold the answer, `arguments` those that keep what the caller gave.
    """

    reads: tuple[tuple[_Place, str, bool], ...]
    named: frozenset[str]
    arguments: frozenset[str]
    offsets: tuple[int, ...]
    places: tuple[_Place, ...]

    def read_at(self, offset: int) -> tuple[set[str], bool]:
        """Return the variables in the call at this offset of the bytecode, and whether the question is in it."""
        call = self.places[bisect.bisect_right(self.offsets, offset) - 1]
        inside = [
            (name, asks) for at, name, asks in self.reads if call.start <= at.start and at.end <= call.end
        ]
        return {name for name, _ in inside}, any(asks for _, asks in inside)


class _Place(NamedTuple):
    """A part of a source file, each end by line and column."""

    start: tuple[int, int]
    end: tuple[int, int]


@functools.lru_cache(maxsize=1024)
def _code(code: CodeType) -> _Code:
    found = [part for one in dis.get_instructions(code) for part in _parts(one)]
    places = _places(found)
    stored = {str(one.argval) for one in found if one.opname in _STORES}
    named = frozenset(
        str(one.argval)
        for index, one in enumerate(found)
        # Where two branches meet, the variable may hold what the caller gave.
        if one.opname in _STORES
        and not one.is_jump_target
        and any(other.argval == _ASKS for other in found[max(0, index - _NEAR) : index])
    )
    reads = tuple(
        (place, str(one.argval), one.argval == _ASKS or one.argval in named)
        for one, place in zip(found, places, strict=True)
        if one.argval == _ASKS or one.opname.startswith(_LOADS)
    )
    count = code.co_argcount + code.co_kwonlyargcount
    arguments = frozenset(code.co_varnames[:count]) - stored
    return _Code(reads, named, arguments, tuple(one.offset for one in found), tuple(places))


def _parts(one: dis.Instruction) -> list[dis.Instruction]:
    """Return the steps of an instruction: from Python 3.13 on, one may store or load two variables."""
    if type(one.argval) is not tuple or one.opname.count("_FAST") < 2:
        return [one]
    names = [f"{way}_FAST" for way in one.opname.split("_FAST")[:-1]]
    return [
        one._replace(opname=name.lstrip("_"), argval=variable)
        for name, variable in zip(names, one.argval, strict=True)
    ]


def _places(found: list[dis.Instruction]) -> list[_Place]:
    """Return the place of each instruction: exact from Python 3.11 on, before that its whole line."""
    places = []
    line = 0
    for one in found:
        # From Python 3.13 on, `starts_line` only says whether a line starts here.
        line = getattr(one, "line_number", one.starts_line) or line
        exact = getattr(one, "positions", None)
        if exact is None or exact.col_offset is None:
            places.append(_Place((line, 0), (line, sys.maxsize)))
        else:
            places.append(_Place((exact.lineno, exact.col_offset), (exact.end_lineno, exact.end_col_offset)))
    return places
