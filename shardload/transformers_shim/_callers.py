"""What the line of code that calls a function does with the result: code of different ages expects different ones."""

from __future__ import annotations

import dis
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType, FrameType


def unpacks_two(caller: FrameType) -> bool:
    """Return whether the calling line unpacks the result into two: `name, cache = …`."""
    return _unpacks_two_after(caller.f_code, caller.f_lasti)


@functools.lru_cache(maxsize=256)
def _unpacks_two_after(code: CodeType, offset: int) -> bool:
    after = next((step for step in dis.get_instructions(code) if step.offset > offset), None)
    return after is not None and after.opname == "UNPACK_SEQUENCE" and after.argval == 2
