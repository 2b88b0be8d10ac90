"""The heap of the C library: freed memory that it keeps for later, and gives back when it is asked to."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def give_back() -> None:
    """Give freed memory back to the kernel (malloc_trim(3) of glibc); does nothing with another C library.

    Blocks of up to 32 MB come from a heap that otherwise shrinks only at its end. Takes some milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> Callable[[int], int] | None:
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
