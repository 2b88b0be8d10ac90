"""Whether a call names a dtype itself, or passes on what `torch.get_default_dtype()` told it."""

from __future__ import annotations

import bisect
import dis
import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import CodeType, FrameType

_ASKS = "get_default_dtype"
_NEAR = 4  # instructions between the call of get_default_dtype and the one that stores its result


def asks_for_default(frame: FrameType | None, boundary: CodeType) -> bool:
    """Whether the call that `frame` is in, or one that led to it, has the default dtype among its arguments.

    Looks at the calls between `frame` and the frame of `boundary`: at the one with `torch.get_default_dtype()` written
    into it, or a name that was assigned from it in the same function.
    """
    while frame is not None and frame.f_code is not boundary:
        code = _code(frame.f_code)
        if code.asks and code.asks_at(frame.f_lasti):
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class _Code:
    """The places in a function where the default dtype is asked for or a name of it is read, and all places."""

    asks: tuple[_Place, ...]
    offsets: tuple[int, ...] = ()
    places: tuple[_Place, ...] = ()

    def asks_at(self, offset: int) -> bool:
        """Whether the call at this offset of the bytecode has such a place inside."""
        call = self.places[bisect.bisect_right(self.offsets, offset) - 1]
        return any(call.start <= ask.start and ask.end <= call.end for ask in self.asks)


class _Place(NamedTuple):
    """A part of a source file, each end by line and column."""

    start: tuple[int, int]
    end: tuple[int, int]


@functools.lru_cache(maxsize=1024)
def _code(code: CodeType) -> _Code:
    if _ASKS not in code.co_names:
        return _Code(())
    found = list(dis.get_instructions(code))
    places = _places(found)
    named = {
        one.argval
        for index, one in enumerate(found)
        if one.opname.startswith("STORE_")
        and any(other.argval == _ASKS for other in found[max(0, index - _NEAR) : index])
    }
    asks = tuple(
        place
        for one, place in zip(found, places, strict=True)
        if one.argval == _ASKS or (one.opname.startswith("LOAD_") and one.argval in named)
    )
    return _Code(asks, tuple(one.offset for one in found), tuple(places))


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
