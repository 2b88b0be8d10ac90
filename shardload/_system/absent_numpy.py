"""Leaves out torch's warning that NumPy, which shardload does not need, is absent."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_numpy_warning() -> Iterator[None]:
    """Around code that may be the first to import torch: torch does not warn that NumPy is absent.

    A NumPy that is there and does not work is warned about, and all other warnings are as they were, and so are the
    process's filters afterwards.
    """
    if "torch" in sys.modules:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to initialize NumPy: No module named 'numpy'", UserWarning)
        yield
